"""The one call: what it returns, what f's parameters receive, what it refuses and keeps."""

import dataclasses

import pytest
import torch
from gumbelrl.gumbel import (
    ESTIMATORS,
    Estimator,
    FactoredCategorical,
    LearnedTemperature,
    Pathwise,
    gradient_report,
    make_estimator,
)

F64 = torch.float64
NEEDS_SLOPE = [name for name, cls in ESTIMATORS.items() if issubclass(cls, Pathwise)] + [
    "muprop",
    "rebar",
]


def problem(dtype=F64, nvec=(3, 2)):
    logits = torch.randn(4, sum(nvec), dtype=dtype, requires_grad=True)
    return logits, FactoredCategorical(logits, nvec)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_value_shape_and_gradient(name, batch):
    logits = torch.randn(*batch, 5, requires_grad=True)
    value = make_estimator(name)(
        FactoredCategorical(logits, (3, 2)), lambda d: (d * torch.arange(5.0)).sum(-1) ** 2
    )
    assert value.shape == batch
    (g,) = torch.autograd.grad(value.sum(), logits)
    assert g.shape == logits.shape
    assert g.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("mixed",)])
def test_f_receives_its_ordinary_gradient(name):
    """What f closes over: ∂/∂φ of the returned value with the samples held fixed, no more. REBAR's
    relaxed evaluations, MuProp's at π and the neighbours of LEG must leave no trace."""
    _, dist = problem()
    phi = torch.randn(5, dtype=F64, requires_grad=True)
    seen = []

    def f(d):
        value = (d * phi).sum(-1) ** 2
        seen.append(d.detach())
        return value

    value = make_estimator(name)(dist, f, torch.Generator().manual_seed(0))
    (got,) = torch.autograd.grad(value.sum(), phi)
    if name == "exact":
        joint = dist.probs[:, :3, None] * dist.probs[:, None, 3:]
        every = torch.cat(
            [torch.eye(3, dtype=F64).repeat_interleave(2, 0), torch.eye(2, dtype=F64).repeat(3, 1)],
            -1,
        )
        want = torch.einsum("bn,n,nk->k", joint.flatten(1), 2 * (every @ phi), every)
    else:
        if name == "local_expectation":
            actual = torch.Generator().manual_seed(0)
            d = dist.one_hot(dist.sample(actual))[None]
        else:
            d = seen[0] if seen[0].ndim == 3 else seen[0][None]  # [k, B, ΣK]
        want = (2 * (d @ phi)[..., None] * d).sum((0, 1)) / len(d)
    torch.testing.assert_close(got, want.detach())


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_rows_are_weighed_by_what_comes_from_above(name):
    """ĝ of a row scales with ∂loss/∂value of that row, so value.mean() and weights work."""
    logits, _ = problem()
    weights = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=F64)
    grads = []
    for w in (torch.ones(4, dtype=F64), weights):
        dist = FactoredCategorical(logits, (3, 2))
        value = make_estimator(name)(
            dist, lambda d: d.cos().prod(-1), torch.Generator().manual_seed(1)
        )
        grads.append(torch.autograd.grad((w * value).sum(), logits)[0])
    torch.testing.assert_close(grads[1], weights[:, None] * grads[0])


@pytest.mark.parametrize("name", NEEDS_SLOPE)
@pytest.mark.parametrize(
    "f",
    [
        lambda d: d.argmax(-1).float(),
        lambda d: d.detach().sum(-1),
        lambda d: (d.detach() * torch.ones(5, dtype=F64, requires_grad=True)).sum(-1),
    ],
    ids=["argmax", "detach", "graph-elsewhere"],
)
def test_an_f_without_slope_is_refused_with_a_remedy(name, f):
    _, dist = problem()
    with pytest.raises(ValueError, match=rf"{name} needs ∂f/∂D.*rloo"):
        make_estimator(name)(dist, f)


def test_no_slope_is_needed_where_nothing_is_to_be_learned():
    dist = FactoredCategorical(torch.zeros(3, 4))
    assert make_estimator("st_gumbel")(dist, lambda d: d.argmax(-1)).shape == (3,)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_a_value_of_the_wrong_shape_is_refused(name):
    _, dist = problem()
    with pytest.raises(ValueError, match="one value per row"):
        make_estimator(name)(dist, lambda d: d.sum(-1, keepdim=True))


class Heads:
    """A K-headed critic: one forward gives all values."""

    def __init__(self, values):
        self.values, self.calls = values, 0

    def __call__(self, one_hot):
        return (self.values * one_hot).sum(-1)

    def table(self):
        self.calls += 1
        return self.values

    def per_factor(self, one_hot):
        self.calls += 1
        return self.values


@pytest.mark.parametrize("name", ["exact", "local_expectation"])
def test_a_k_headed_critic_is_asked_once(name):
    """`table` and `per_factor` give the same value and gradients as enumeration does."""
    logits = torch.randn(4, 6, dtype=F64, requires_grad=True)
    values = torch.randn(4, 6, dtype=F64, requires_grad=True)
    heads = Heads(values)
    dist = FactoredCategorical(logits)
    results = []
    for f in (heads, lambda d: heads(d)):
        value = make_estimator(name)(dist, f, torch.Generator().manual_seed(0))
        results.append((value, *torch.autograd.grad(value.sum(), (logits, values))))
    assert heads.calls == 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_given_baseline_is_used_and_its_absence_refused():
    class WithBaseline:
        def __call__(self, d):
            return 3.0 + 0.0 * d.sum(-1)

        def baseline(self):
            return torch.full((4,), 3.0, dtype=F64)

    logits, dist = problem()
    value = make_estimator("reinforce", baseline="given")(dist, WithBaseline())
    assert torch.autograd.grad(value.sum(), logits)[0].abs().max() == 0
    with pytest.raises(ValueError, match=r"baseline\(\)"):
        make_estimator("reinforce", baseline="given")(dist, lambda d: d.sum(-1))


def test_enumeration_has_a_stated_limit():
    dist = FactoredCategorical(torch.zeros(1, 60), (2,) * 30)
    with pytest.raises(ValueError, match=r"1073741824 joint actions.*4096.*local_expectation"):
        make_estimator("exact")(dist, lambda d: d.sum(-1))
    with pytest.raises(ValueError, match=r"60 evaluations.*10.*rloo"):
        make_estimator("local_expectation", limit=10)(dist, lambda d: d.sum(-1))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("st_gumble", {}, ["'st_gumble'", "did you mean 'st_gumbel'", "reinmax"]),
        ("ppo", {}, ["unknown estimator 'ppo'", "allowed"]),
        (None, {}, ["unknown estimator None"]),
        ("st_gumbel", {"temprature": 1.0}, ["'temprature'", "'temperature'"]),
        ("st_gumbel", {"temperature": 0.0}, ["temperature", "> 0", "0.0"]),
        ("straight_through", {"temperature": float("nan")}, ["nan"]),
        ("decoupled_st_gumbel", {"temperature_forward": -1}, ["temperature_forward", "-1"]),
        ("gapped_st", {"gap": -1.0}, ["gap", "-1.0"]),
        ("gumbel_rao", {"k": 0}, ["k must be", "0"]),
        ("rloo", {"k": 1}, ["k >= 2", "k=1", "reinforce"]),
        ("rebar", {"temperature": 0}, ["temperature", "0"]),
        ("rebar", {"learning_rate": -1.0}, ["learning_rate", "-1.0"]),
        ("reinforce", {"baseline": "mean"}, ["'mean'", "'running_mean'"]),
        ("reinforce", {"decay": 1.0}, ["decay", "1.0"]),
        ("exact", {"limit": 0}, ["limit", "0"]),
        ("mixed", {"rho": 1.5}, ["rho", "[0, 1]", "1.5", "measured"]),
        ("mixed", {"rho": "learned"}, ["rho", "'learned'", "measured"]),
        ("mixed", {"pathwise": "reinmx"}, ["'reinmx'", "'reinmax'"]),
        ("mixed", {"score": {"name": "rloo", "k": 1}}, ["k >= 2"]),
    ],
)
def test_wrong_names_and_settings(name, settings, words):
    with pytest.raises(ValueError, match=r".") as error:
        make_estimator(name, **settings)
    for word in words:
        assert word in str(error.value)


def test_settings_are_frozen_and_estimators_pass_through():
    estimator = make_estimator("gumbel_rao", temperature=0.5, k=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimator.settings.k = 4
    assert make_estimator(estimator) is estimator
    with pytest.raises(ValueError, match="ready-made GumbelRao"):
        make_estimator(estimator, k=3)


def test_a_users_own_estimator_is_a_class_with_the_call():
    class Blind(Estimator):
        name = "blind"

        def forward(self, dist, f, generator=None):
            return f(dist.one_hot(dist.sample(generator)))

    _, dist = problem()
    assert make_estimator(Blind())(dist, lambda d: d.sum(-1)).shape == (4,)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_what_lives_survives_in_the_state_dict_as_tensors(name):
    """After some calls, a fresh estimator with the loaded state continues to the bit."""

    def call(estimator, seed):
        logits = torch.arange(10.0).view(2, 5).requires_grad_()
        value = estimator(
            FactoredCategorical(logits, (3, 2)),
            lambda d: (d * torch.arange(5.0)).sin().sum(-1),
            torch.Generator().manual_seed(seed),
        )
        return torch.autograd.grad(value.sum(), logits)[0]

    settings = {"rho": "measured"} if name == "mixed" else {}
    settings |= {"baseline": "running_mean"} if name == "reinforce" else {}
    first, second = make_estimator(name, **settings), make_estimator(name, **settings)
    first.set_progress(0.4)
    for seed in range(4):
        call(first, seed)
    state = first.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    second.load_state_dict({key: value.clone() for key, value in state.items()})
    assert second.progress == 0.4
    for seed in range(4, 7):
        assert torch.equal(call(first, seed), call(second, seed))
    fresh = make_estimator(name, **settings).state_dict()
    if name in ("reinforce", "rebar", "relax", "mixed"):
        assert any(
            value.shape != fresh[key].shape or not torch.equal(value, fresh[key])
            for key, value in state.items()
        )


def test_half_precision_tunes_in_single():
    """bf16 logits: relax and rebar keep float32 state, and give bf16 gradients."""
    for name in ("rebar", "relax"):
        estimator = make_estimator(name)
        logits = torch.randn(8, 4).bfloat16().requires_grad_()
        value = estimator(FactoredCategorical(logits), lambda d: (d * d).sum(-1))
        (g,) = torch.autograd.grad(value.sum(), logits)
        assert g.dtype == torch.bfloat16
        assert estimator.tuned.phi.dtype == torch.float32
        assert not estimator.tuned.phi.requires_grad


def test_relax_refuses_another_layout():
    estimator = make_estimator("relax")
    for k in (4, 5):
        logits = torch.randn(8, k, requires_grad=True)
        dist = FactoredCategorical(logits)
        if k == 4:
            estimator(dist, lambda d: (d * d).sum(-1))
        else:
            with pytest.raises(ValueError, match="another action layout"):
                estimator(dist, lambda d: (d * d).sum(-1))


def test_mixed_is_the_stated_combination():
    """Same generator: draws of score, then pathwise; ĝ = ρ s + (1 − ρ) p to rounding."""
    logits, dist = problem()

    def f(d):
        return (d * torch.arange(5.0, dtype=F64)).sin().sum(-1)

    generator = torch.Generator().manual_seed(0)
    parts = []
    for name in ("rloo", "reinmax"):
        value = make_estimator(name)(dist, f, generator)
        parts.append((value, torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]))
    schedule = {"schedule": "linear", "start": 0.0, "end": 1.0}
    mixed = make_estimator("mixed", pathwise="reinmax", score="rloo", rho=schedule)
    mixed.set_progress(0.3)
    assert mixed.pathwise.progress == 0.3
    value = mixed(dist, f, torch.Generator().manual_seed(0))
    (g,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(value, 0.3 * parts[0][0] + 0.7 * parts[1][0])
    torch.testing.assert_close(g, 0.3 * parts[0][1] + 0.7 * parts[1][1])


def test_measured_rho_trusts_the_aligned_and_not_the_misleading():
    """Linear f: ST is exact, ρ → 0. f twisted off the corners: ST points away, ρ → 1."""
    a = torch.tensor([1.0, -0.5, 0.3, 0.0])
    logits = torch.zeros(64, 4, requires_grad=True)

    def twisted(d):
        return d @ a - 20.0 * (a * d * (1 - d)).sum(-1)

    rho = {}
    for key, f in {"linear": lambda d: d @ a, "twisted": twisted}.items():
        mixed = make_estimator("mixed", pathwise="straight_through", rho="measured")
        assert mixed.rho == 1.0  # before any measurement
        for _ in range(40):
            mixed(FactoredCategorical(logits), f, torch.Generator().manual_seed(_))
        rho[key] = float(mixed.rho)
    assert rho["linear"] < 0.1
    assert rho["twisted"] > 0.9


def test_a_learned_temperature_finds_the_least_squared_error():
    """From both sides to where bias² + variance of ST-GS is within 10 % of the best on a grid, and
    masks do not stop it."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 8, generator=generator)
    mask = torch.ones(8).bool()
    mask[3] = False
    w, v = torch.randn(8, 16, generator=generator), torch.randn(16, generator=generator)
    dist = FactoredCategorical(logits, mask=mask)

    def f(d):
        return (2 * d @ w).tanh() @ v

    def squared_error(tau):
        report = gradient_report(
            make_estimator("st_gumbel", temperature=tau), dist, f, 1000, generator=generator
        )
        return report.bias**2 + report.std**2

    best = min(squared_error(tau) for tau in (0.3, 0.5, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0, 5.0))
    for start in (0.3, 5.0):
        tau = LearnedTemperature(start, learning_rate=0.05)
        estimator = make_estimator("st_gumbel", temperature=tau)
        for _ in range(150):
            tau.tune(estimator, dist, f, generator)
        assert squared_error(float(tau(0.0))) < 1.1 * best
        assert any("phi" in key for key in estimator.state_dict())


def test_a_learned_temperature_is_not_moved_by_the_training_loss():
    tau = LearnedTemperature(1.0)
    estimator = make_estimator("st_gumbel", temperature=tau)
    _, dist = problem(torch.float32)
    estimator(dist, lambda d: d.square().sum(-1)).sum().backward()
    assert list(estimator.parameters()) == []
    assert float(tau(0.0)) == 1.0
    with pytest.raises(ValueError, match=r"initial.*20"):
        LearnedTemperature(20.0)
