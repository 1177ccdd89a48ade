"""What is exactly true of the estimators, each line tested without data, in float64.

Expectations over D and over the joint actions are enumerated, not sampled, wherever the estimator
is deterministic given D."""

import pytest
import torch
from gumbelrl.gumbel import FactoredCategorical, conditional_gumbels, gumbel_noise, make_estimator
from gumbelrl.gumbel.gradient import choose, g_hat, jacobian_product

F64 = torch.float64
K = 5


def jacobian(p):
    """J(p) = diag(p) − p pᵀ, [K, K]."""
    return torch.diag(p) - torch.outer(p, p)


def quadratic(k=K, seed=0):
    """f(D) = ⟨a, D⟩ + ½ Dᵀ A D with its slope, over one-hots [..., K]."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(k, generator=generator, dtype=F64)
    half = torch.randn(k, k, generator=generator, dtype=F64)
    matrix = half + half.T
    return lambda d: d @ a + 0.5 * torch.einsum("...i,ij,...j->...", d, matrix, d)


def linear(k=K, seed=0):
    a = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return lambda d: d @ a


def exact_gradient(theta, f):
    theta = theta.clone().requires_grad_()
    value = make_estimator("exact")(FactoredCategorical(theta), f)
    return torch.autograd.grad(value.sum(), theta)[0]


def estimates(estimator, theta, f, noise):
    """ĝ [n, K] of each noise row [(1 + k,) n, 1, K]."""
    rows = theta.expand(noise.shape[-3], -1).clone().requires_grad_()
    dist = FactoredCategorical(rows)
    value = f(estimator.relax(dist.theta, noise).squeeze(-2))
    return torch.autograd.grad(value.sum(), rows)[0]


def noise_for_each_category(theta):
    """[K, 1, K] noise whose row i makes category i win, to enumerate D."""
    return (50.0 * torch.eye(len(theta), dtype=F64))[:, None]


THETA = torch.tensor([0.3, -1.0, 1.2, 0.0, -0.4], dtype=F64)


def test_straight_through_is_exact_without_variance_on_linear_f():
    g = estimates(
        make_estimator("straight_through"), THETA, linear(), noise_for_each_category(THETA)
    )
    want = exact_gradient(THETA, linear())
    torch.testing.assert_close(g, want.expand_as(g))  # every D gives the same, and it is right


def test_reinmax_has_no_bias_on_quadratic_f():
    g = estimates(make_estimator("reinmax"), THETA, quadratic(), noise_for_each_category(THETA))
    torch.testing.assert_close(THETA.softmax(-1) @ g, exact_gradient(THETA, quadratic()))


def test_straight_through_has_bias_on_quadratic_f_and_st_gumbel_on_linear():
    """The two lines above would pass for a test that sees nothing: here it must see bias."""
    g = estimates(
        make_estimator("straight_through"), THETA, quadratic(), noise_for_each_category(THETA)
    )
    bias = THETA.softmax(-1) @ g - exact_gradient(THETA, quadratic())
    assert bias.norm() > 0.05 * exact_gradient(THETA, quadratic()).norm()
    noise = gumbel_noise((100_000, 1, K), dtype=F64)
    mean = estimates(make_estimator("st_gumbel"), THETA, linear(), noise).mean(0)
    want = exact_gradient(THETA, linear())
    assert (mean - want).norm() > 0.1 * want.norm()


def test_reinmax_at_one_is_its_second_form():
    """2 J(m) g − ½ J(π) g = ½ [J(π) + (D − π)(D − π)ᵀ] g to rounding, for every D and any f."""
    f = lambda d: (3.0 * quadratic()(d)).tanh()  # noqa: E731
    pi = THETA.softmax(-1)
    got = estimates(make_estimator("reinmax"), THETA, f, noise_for_each_category(THETA))
    for i, d in enumerate(torch.eye(K, dtype=F64)):
        slope = torch.autograd.functional.jacobian(f, d)
        want = 0.5 * (jacobian(pi) + torch.outer(d - pi, d - pi)) @ slope
        torch.testing.assert_close(got[i], want)


def test_gumbel_rao_at_low_temperature_tends_to_reinmax():
    """ReinMax(τ = 1) is the limit of Gumbel-Rao as τ → 0, K → ∞: within 5 standard errors plus 5 %
    at τ = 0.05 (false alarm below 1e-5)."""
    generator = torch.Generator().manual_seed(0)
    g = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=F64)
    d = torch.eye(K, dtype=F64)[0]
    z = conditional_gumbels(THETA, d.bool(), gumbel_noise((400_000, K), generator, F64))
    parts = jacobian_product((z / 0.05).softmax(-1), g.expand_as(z)) / 0.05
    pi = THETA.softmax(-1)
    want = 0.5 * (jacobian(pi) + torch.outer(d - pi, d - pi)) @ g
    error = parts.std(0) / len(parts) ** 0.5
    assert ((parts.mean(0) - want).abs() < 5 * error + 0.05 * want.abs().max()).all()


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_gumbel_rao_has_st_gumbels_mean_and_less_variance(temperature):
    """Means within 5 standard errors per entry (false alarm 6e-7 each); variances ordered, and
    decreasing in K."""
    n, f = 40_000, quadratic()
    generator = torch.Generator().manual_seed(1)
    st = make_estimator("st_gumbel", temperature=temperature)
    base = estimates(st, THETA, f, gumbel_noise((n, 1, K), generator, F64))
    last = base.var(0).sum()
    for k in (1, 4, 16):
        rao = make_estimator("gumbel_rao", temperature=temperature, k=k)
        g = estimates(rao, THETA, f, gumbel_noise((1 + k, n, 1, K), generator, F64))
        error = ((g.var(0) + base.var(0)) / n).sqrt()
        assert ((g.mean(0) - base.mean(0)).abs() < 5 * error).all()
        if k == 1:  # one conditional noise is ST-GS itself
            torch.testing.assert_close(g.var(0).sum(), last, rtol=0.05, atol=0)
        else:
            assert g.var(0).sum() < last
        last = g.var(0).sum()


class Multilinear:
    """Q(D) = Σ A[i, j, k] D₁[i] D₂[j] D₃[k]: linear in each factor given the others."""

    def __init__(self, nvec, seed=0):
        self.nvec = nvec
        self.a = torch.randn(nvec, generator=torch.Generator().manual_seed(seed), dtype=F64)

    def __call__(self, d):
        parts = d.split(self.nvec, -1)
        return torch.einsum("ijk,...i,...j,...k->...", self.a, *parts)


def test_straight_through_on_a_multilinear_critic_is_local_expectation():
    """In one evaluation and one backward, for the same sampled D: equal to rounding."""
    nvec = (3, 2, 4)
    q = Multilinear(nvec)
    logits = torch.randn(6, 9, dtype=F64, requires_grad=True)
    grads = []
    for name in ("straight_through", "local_expectation"):
        generator = torch.Generator().manual_seed(7)  # both draw one block of noise: same D
        value = make_estimator(name)(FactoredCategorical(logits, nvec), q, generator)
        grads.append((value, torch.autograd.grad(value.sum(), logits)[0]))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_the_mean_of_two_multilinear_critics_keeps_that_and_their_minimum_does_not():
    nvec = (3, 2, 4)
    q1, q2 = Multilinear(nvec, 1), Multilinear(nvec, 2)
    logits = torch.randn(64, 9, dtype=F64, requires_grad=True)

    def pair(f):
        out = []
        for name in ("straight_through", "local_expectation"):
            generator = torch.Generator().manual_seed(7)
            value = make_estimator(name)(FactoredCategorical(logits, nvec), f, generator)
            out.append(torch.autograd.grad(value.sum(), logits)[0])
        return out

    st, leg = pair(lambda d: 0.5 * (q1(d) + q2(d)))
    torch.testing.assert_close(st, leg)
    st, leg = pair(lambda d: torch.minimum(q1(d), q2(d)))
    assert (st - leg).norm() > 0.05 * leg.norm()


def test_off_the_corners_a_function_is_free():
    """f and f + A Σ s x (1 − x) agree at every action, and give pathwise gradients of any sign."""
    f = linear()
    s = -exact_gradient(THETA, f).sign()

    def twisted(d):
        return f(d) + 20.0 * (s * d * (1 - d)).sum(-1)

    corners = torch.eye(K, dtype=F64)
    torch.testing.assert_close(twisted(corners), f(corners))
    want = exact_gradient(THETA, twisted)
    torch.testing.assert_close(want, exact_gradient(THETA, f))
    g = estimates(
        make_estimator("straight_through"), THETA, twisted, noise_for_each_category(THETA)
    )
    mean = THETA.softmax(-1) @ g
    assert torch.cosine_similarity(mean, want, dim=0) < 0.5  # it was 1 before the twist


def test_each_gradient_is_its_closed_form():
    """ST-GS, ST, GST, decoupled: ĝ = J(y) g/τ with y written out by hand, per sample."""
    f = lambda d: (2.0 * quadratic()(d)).tanh()  # noqa: E731
    noise = gumbel_noise((200, 1, K), dtype=F64)
    z = THETA + noise[:, 0]
    tau = 0.6
    d = choose(z).double()
    leaf = d.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf).sum(), leaf)
    gap, top = 1.0, THETA.max()
    lifted = THETA + (top - THETA) * d - (THETA - top + gap).clamp(min=0) * (1 - d)
    forms = {
        "st_gumbel": (z / tau).softmax(-1),
        "straight_through": (THETA / tau).softmax(-1).expand_as(z),
        "gapped_st": (lifted / tau).softmax(-1),
    }
    for name, y in forms.items():
        got = estimates(make_estimator(name, temperature=tau), THETA, f, noise)
        want = torch.stack([jacobian(p) @ v for p, v in zip(y, g, strict=True)]) / tau
        torch.testing.assert_close(got, want)
    y = ((THETA + 1.7 * noise[:, 0]) / tau).softmax(-1)
    leaf = choose(y).double().requires_grad_()
    (g,) = torch.autograd.grad(f(leaf).sum(), leaf)
    decoupled = make_estimator(
        "decoupled_st_gumbel", temperature_forward=1.7, temperature_backward=tau
    )
    got = estimates(decoupled, THETA, f, noise)
    torch.testing.assert_close(got, jacobian_product(y, g) / tau)


def test_decoupled_is_st_gumbel_with_a_forward_temperature():
    """Same noise, same one-hot, same gradient on the logits."""
    logits = torch.randn(50, K, dtype=F64, requires_grad=True)
    noise, f = gumbel_noise((50, 1, K), dtype=F64), quadratic()
    decoupled = make_estimator(
        "decoupled_st_gumbel", temperature_forward=2.0, temperature_backward=0.5
    )
    d1 = decoupled.relax(FactoredCategorical(logits).theta, noise)
    st = make_estimator("st_gumbel", temperature=0.5 / 2.0)
    d2 = st.relax(FactoredCategorical(logits, forward_temperature=2.0).theta, noise)
    assert torch.equal(d1, d2)
    one = torch.autograd.grad(f(d1.squeeze(-2)).sum(), logits)[0]
    two = torch.autograd.grad(f(d2.squeeze(-2)).sum(), logits)[0]
    torch.testing.assert_close(one, two)


def test_soft_sample_gradient_is_autograds():
    logits = torch.randn(4, K, dtype=F64, requires_grad=True)
    noise = gumbel_noise((4, 1, K), dtype=F64)
    soft = make_estimator("gumbel_softmax", temperature=0.7)
    y = soft.relax(FactoredCategorical(logits).theta, noise).squeeze(-2)
    torch.testing.assert_close(y, ((logits + noise[:, 0]) / 0.7).softmax(-1))
    assert torch.autograd.gradcheck(
        lambda x: soft.relax(FactoredCategorical(x).theta, noise), (logits,)
    )


def test_g_hat_sums_over_samples():
    p = torch.rand(3, 4, 2, 5, dtype=F64).softmax(-1)
    g = torch.randn(4, 2, 5, dtype=F64)
    want = sum(0.5 * jacobian_product(row, g) for row in p)
    torch.testing.assert_close(g_hat([(0.5, p)], g), want)
