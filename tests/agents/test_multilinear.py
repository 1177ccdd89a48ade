"""The multilinear critic: its slope is the local expectation's, at any number of factors."""

import pytest
import torch
from gumbelrl.agents.critics import CriticObjective, MultilinearCritic
from gumbelrl.gumbel import FactoredCategorical, make_estimator

B, D = 6, 5
SPACES = [(4,), (2, 3, 5), (2,) * 20, (2, 3, 4, 5) * 5]


def make(nvec, **kwargs):
    return MultilinearCritic(D, nvec, [16, 12], **{"n_critics": 2, **kwargs}).double()


def sampled(n, nvec):
    one_hots = [torch.nn.functional.one_hot(torch.randint(k, (n,)), k) for k in nvec]
    return torch.cat(one_hots, -1).double()


def slope_of(critic, embedding, one_hot):
    """∂Q_c/∂D of every member, [C, B, ΣK]."""
    point = one_hot.clone().requires_grad_()
    q = critic.q(embedding, point)
    return torch.stack([torch.autograd.grad(each.sum(), point, retain_graph=True)[0] for each in q])


@pytest.mark.parametrize("nvec", SPACES, ids=len)
def test_slope_differences_are_value_differences(nvec):
    # Q(D₋ₘ, e_k) − Q(D₋ₘ, e_j) = ∂Q/∂D_m[k] − ∂Q/∂D_m[j], wherever D_m itself stands.
    torch.manual_seed(0)
    critic = make(nvec)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    one_hot = sampled(B, nvec)
    slope = slope_of(critic, embedding, one_hot)
    start = 0
    for size in nvec:
        rows = torch.eye(size, dtype=torch.float64)
        neighbours = one_hot.expand(size, *one_hot.shape).clone()  # (K, B, ΣK)
        neighbours[..., start : start + size] = rows.unsqueeze(1)
        q = critic.q(embedding, neighbours).permute(0, 2, 1)  # (C, B, K)
        g = slope[..., start : start + size]
        torch.testing.assert_close(q - q[..., :1], g - g[..., :1], rtol=0, atol=1e-10)
        start += size


@pytest.mark.parametrize("nvec", SPACES, ids=len)
def test_linear_in_each_factor_between_the_actions_too(nvec):
    torch.manual_seed(0)
    critic = make(nvec)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    a, b = (torch.rand(B, sum(nvec), dtype=torch.float64) for _ in range(2))
    b[:, nvec[0] :] = a[:, nvec[0] :]  # only the first factor differs
    middle = critic.q(embedding, 0.3 * a + 0.7 * b)
    ends = 0.3 * critic.q(embedding, a) + 0.7 * critic.q(embedding, b)
    torch.testing.assert_close(middle, ends, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reduce", ["mean", "min"])
@pytest.mark.parametrize("nvec", SPACES, ids=len)
def test_straight_through_is_local_expectation_draw_by_draw(nvec, reduce):
    torch.manual_seed(0)
    critic = make(nvec)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64)).detach()
    objective = CriticObjective(critic, embedding, reduce)
    start = torch.randn(B, sum(nvec), dtype=torch.float64)
    results = []
    for name in ("straight_through", "local_expectation"):
        logits = start.clone().requires_grad_()
        dist = FactoredCategorical(logits, nvec)
        generator = torch.Generator().manual_seed(1)  # the same actions
        value = make_estimator(name)(dist, objective, generator)
        value.sum().backward()
        results.append((value.detach(), logits.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-10)
    assert results[0][1].norm() > 1e-3


def test_the_minimum_is_the_smaller_critic_at_the_sampled_action():
    torch.manual_seed(0)
    nvec = (2, 3, 5)
    critic = make(nvec)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    one_hot = sampled(B, nvec)
    low = CriticObjective(critic, embedding, "min")
    torch.testing.assert_close(low(one_hot), critic.q(embedding, one_hot).amin(0))


def test_local_expectation_takes_one_forward():
    critic = make((2, 3, 5))
    objective = CriticObjective(critic, critic.embed(torch.zeros(B, D, dtype=torch.float64)))
    calls = []
    critic.q = lambda *arguments: calls.append(1)
    dist = FactoredCategorical(torch.zeros(B, 10, dtype=torch.float64), (2, 3, 5))
    make_estimator("local_expectation")(dist, objective)
    assert not calls


def scales(nvec):
    """(spread of Q over states and actions, norm of one Q's parameter gradient), of 16 members."""
    torch.manual_seed(0)
    x = torch.randn(256, D)
    critic = MultilinearCritic(D, nvec, [64, 64], n_critics=16)
    q = critic.q(critic.embed(x), sampled(256, nvec).float())  # (C, B)
    q[:, 0].sum().backward()
    norm = torch.stack([p.grad.norm() for p in critic.parameters()]).norm() / 4
    return q.std(1).mean().item(), norm.item()


@pytest.mark.parametrize("k", [2, 5])
def test_scale_at_the_start_does_not_grow_with_the_factors(k):
    # 2 to 64 factors against one. The vectors' own gradient alone grows, as √ΣK.
    spread, norm = scales((k,))
    for m in (2, 8, 20, 64):
        other_spread, other_norm = scales((k,) * m)
        assert 0.5 < other_spread / spread < 2
        assert 1 / 3 < other_norm / norm < 3


@pytest.mark.parametrize("nvec", [(3, 4, 5, 2), (2,) * 20], ids=len)
def test_fits_a_random_table_of_pairs(nvec):
    torch.manual_seed(0)
    total = sum(nvec)
    factor = torch.arange(len(nvec)).repeat_interleave(torch.tensor(nvec))
    pairs = torch.randn(total, total) * (factor[:, None] < factor)
    pairs /= len(nvec)
    critic = MultilinearCritic(D, nvec, [32], n_critics=1)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    x = torch.zeros(256, D)
    for step in range(600):
        one_hot = sampled(256, nvec).float()
        y = torch.einsum("bi,ij,bj->b", one_hot, pairs, one_hot)
        error = (critic.q(critic.embed(x), one_hot)[0] - y).square().mean()
        if step == 0:
            unexplained = y.var().item()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error.item() < 0.02 * unexplained
