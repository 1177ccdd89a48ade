"""Wrong input ends in a ValueError that says what was given, and no input is quietly bent."""

import numpy as np
import pytest
import torch
from gumbelrl.gumbel import (
    Constant,
    FactoredCategorical,
    LearnedTemperature,
    gradient_report,
    gumbel_softmax,
    make_estimator,
    make_schedule,
)

F64 = torch.float64


def problem(k=4, rows=3, dtype=torch.float32):
    logits = torch.randn(rows, k, dtype=dtype, requires_grad=True)
    return logits, FactoredCategorical(logits)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rloo", {}),
        ("reinforce", {}),
        ("reinforce", {"baseline": "running_mean"}),
        ("local_expectation", {}),
        ("exact", {}),
    ],
)
@pytest.mark.parametrize("convert", [torch.Tensor.long, torch.Tensor.bool])
def test_counts_and_hits_are_values_too(name, settings, convert):
    """The same draws and gradient as with the floats they stand for."""
    logits, dist = problem(dtype=F64)
    found = []
    for f in (lambda d: convert(d[..., 0]), lambda d: d[..., 0]):
        value = make_estimator(name, **settings)(dist, f, torch.Generator().manual_seed(0))
        assert value.dtype == F64
        found.append(torch.autograd.grad(value.sum(), logits, retain_graph=True)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("value", [None, np.zeros(3)])
@pytest.mark.parametrize("name", ["rloo", "st_gumbel", "exact"])
def test_f_must_return_a_tensor(name, value):
    with pytest.raises(ValueError, match=r"f must return a tensor.*(NoneType|ndarray)"):
        make_estimator(name)(problem()[1], lambda d: value)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gapped_st", {"gap": "x"}, "gap.*'x'"),
        ("gapped_st", {"gap": None}, "gap.*None"),
        ("reinforce", {"decay": "a"}, "decay.*'a'"),
        ("mixed", {"decay": None}, "decay.*None"),
        ("rebar", {"eta": "a"}, "eta.*'a'"),
        ("rebar", {"eta": None}, "eta.*None"),
        ("rebar", {"learning_rate": "a"}, "learning_rate.*'a'"),
        ("st_gumbel", {"temperature": {"schedule": ["linear"]}}, "temperature.*linear"),
        ("relax", {"hidden": -3}, "hidden.*-3"),
        ("relax", {"hidden": 2.5}, "hidden.*2.5"),
        ("relax", {"hidden": 0}, "hidden.*0"),
        ("relax", {"relaxed_f": "no"}, "relaxed_f.*True or False.*'no'"),
        ("mixed", {"pathwise": "rloo", "score": "st_gumbel"}, "pathwise=, got 'rloo'"),
        ("mixed", {"score": "st_gumbel"}, "score=, got 'st_gumbel'"),
        ("mixed", {"score": "mixed"}, "score=, got 'mixed'"),
    ],
)
def test_settings_of_a_wrong_kind(name, settings, words):
    with pytest.raises(ValueError, match=words):
        make_estimator(name, **settings)


def test_numpy_numbers_are_numbers():
    assert make_schedule(np.float32(0.5)) == Constant(0.5)
    spec = {"schedule": "linear", "start": np.float32(2), "end": np.float64(1), "fraction": 1}
    assert type(make_schedule(spec)(0.5)) is float
    assert make_estimator("st_gumbel", temperature=np.float32(0.5)).temperature == 0.5
    assert make_estimator("rloo", k=np.int64(3)).settings.k == 3
    assert make_estimator("gapped_st", gap=np.float32(2)).settings.gap == 2.0
    assert gumbel_softmax(torch.zeros(2, 3), np.float32(0.5)).shape == (2, 3)
    logits = torch.randn(2, 3)
    dist = FactoredCategorical(
        logits, uniform_mix=np.float32(0.25), forward_temperature=np.float32(2)
    )
    same = FactoredCategorical(logits, uniform_mix=0.25, forward_temperature=2.0)
    assert torch.equal(dist.theta, same.theta)


def test_a_schedule_is_named_after_its_setting():
    for spec in (
        0.0,
        "x",
        {"start": 1, "end": 2},
        {"schedule": "lin", "start": 1, "end": 2},
        {"schedule": "linear", "start": 1, "ende": 2},
        {"schedule": "linear", "start": 1},
        {"schedule": "linear", "start": 1, "end": 2, "fraction": 0},
        {"schedule": "exponential", "start": 1, "end": 0},
    ):
        with pytest.raises(ValueError, match="learning_rate"):
            make_schedule(spec, "learning_rate")


@pytest.mark.parametrize("nvec", [4, 4.0, [2.7, 2.2], "22"])
def test_sizes_are_integers_in_a_sequence(nvec):
    with pytest.raises(ValueError, match="nvec must be a sequence of integers"):
        FactoredCategorical(torch.zeros(2, 4), nvec)


def test_sizes_may_be_numpy_or_torch_integers():
    for nvec in (np.array([2, 2]), torch.tensor([2, 2])):
        assert FactoredCategorical(torch.zeros(2, 4), nvec).nvec == (2, 2)


@pytest.mark.parametrize("method", ["one_hot", "log_prob"])
def test_actions_are_checked(method):
    unequal = FactoredCategorical(torch.zeros(2, 5), (2, 3))
    equal = FactoredCategorical(torch.zeros(2, 6), (3, 3))
    for dist in (unequal, equal, unequal.detach()):
        for wrong in ([0, 3], [-1, 0]):
            with pytest.raises(ValueError, match=rf"got {max(wrong, key=abs)} at index \[1, "):
                getattr(dist, method)(torch.tensor([[0, 0], wrong]))
    with pytest.raises(ValueError, match=r"got 2 at index \[0, 0\]"):
        getattr(unequal, method)(torch.tensor([[2, 0], [0, 0]]))  # a padded place
    unseen = FactoredCategorical(torch.zeros(2, 4), validate=False)
    with pytest.raises(ValueError, match=r"axis of 1.*\[2\].*unsqueeze"):
        getattr(unseen, method)(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="axis of 2"):
        getattr(unequal, method)(torch.tensor(0))


def test_a_forward_temperature_beyond_the_dtype():
    logits = torch.tensor([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"forward_temperature=1e-300.*float32"):
        FactoredCategorical(logits, forward_temperature=1e-300)
    with pytest.raises(ValueError, match=r"forward_temperature=1e-39.*float32"):
        FactoredCategorical(-logits, forward_temperature=1e-39)
    with pytest.raises(ValueError, match="logits must be finite"):
        FactoredCategorical(logits * torch.nan, forward_temperature=0.5)


def test_a_report_takes_names_and_whole_numbers():
    _, dist = problem(dtype=F64)
    f = lambda d: d[..., 0]  # noqa: E731
    assert gradient_report("rloo", dist, f, 8).n == 8
    with pytest.raises(ValueError, match="did you mean 'rloo'"):
        gradient_report("rlo", dist, f, 8)
    with pytest.raises(ValueError, match=r"n=2\.5"):
        gradient_report("rloo", dist, f, 2.5)


def test_a_baseline_of_the_rows_serves_all_draws_of_a_report():
    _, dist = problem()
    f = lambda d: d[..., 0] + 2.0  # noqa: E731
    rows = make_estimator("reinforce", baseline=lambda dist: torch.full((3,), 2.0))
    assert gradient_report(rows, dist, f, 8).n == 8
    for wrong in (torch.zeros(3, 1), torch.zeros(2), torch.zeros(()), None):
        estimator = make_estimator("reinforce", baseline=lambda dist, wrong=wrong: wrong)
        with pytest.raises(ValueError, match=r"baseline\(dist\) of reinforce.*\[3\]"):
            estimator(dist, f)


def test_only_what_has_this_temperature_is_tuned():
    tau = LearnedTemperature()
    _, dist = problem()
    for estimator, words in (
        (make_estimator("rloo"), "'rloo', which has none"),
        (make_estimator("gumbel_softmax", temperature=tau), "'gumbel_softmax', which has none"),
        (make_estimator("decoupled_st_gumbel", temperature_backward=tau), "which has none"),
        (make_estimator("st_gumbel"), "'st_gumbel' with another temperature"),
        (make_estimator("st_gumbel", temperature=LearnedTemperature()), "another temperature"),
    ):
        with pytest.raises(ValueError, match=words):
            tau.tune(estimator, dist, lambda d: d.square().sum(-1))


def test_second_derivatives_are_refused():
    logits, dist = problem(dtype=F64)
    phi = torch.randn(4, dtype=F64, requires_grad=True)
    value = make_estimator("st_gumbel")(dist, lambda d: (d * phi).sum(-1) ** 2)
    (g,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_a_measured_rho_weighs_its_first_batches_alike():
    logits = torch.zeros(8, 4, requires_grad=True)
    mixed = make_estimator("mixed", rho="measured", decay=0.9)
    seen = []
    for seed in range(4):
        mixed(FactoredCategorical(logits), lambda d: d[..., 0], torch.Generator().manual_seed(seed))
        fresh = make_estimator("mixed", rho="measured", decay=0.9)
        fresh(FactoredCategorical(logits), lambda d: d[..., 0], torch.Generator().manual_seed(seed))
        seen.append(fresh.products)
        torch.testing.assert_close(mixed.products, torch.stack(seen).mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_exact_keeps_the_dtype_of_f(dtype):
    class Heads:
        def __call__(self, d):
            return d[..., 0].to(dtype)

        def table(self):
            return torch.zeros(3, 4, dtype=dtype)

    _, dist = problem(dtype=F64)
    assert make_estimator("exact")(dist, Heads()).dtype == dtype
    assert make_estimator("exact")(dist, Heads().__call__).dtype == dtype
