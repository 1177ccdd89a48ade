"""`on_table`: value and gradient of an estimator where f is a table, without autograd."""

import pytest
import torch
from gumbelrl.gumbel import ESTIMATORS, FactoredCategorical, make_estimator
from gumbelrl.gumbel.learned_temperature import LearnedTemperature

CLOSED = [
    *("exact", "gapped_st", "gumbel_rao", "reinmax", "reinmax_rao", "st_gumbel"),
    "straight_through",
]
B, K = 64, 5


class Table:
    """f(D) = ⟨D, table⟩, as a critic with a head for each action offers it."""

    def __init__(self, values):
        self.values = values

    def __call__(self, one_hot):
        return (one_hot * self.values).sum(-1)

    def table(self):
        return self.values


def draws(dtype, masked):
    generator = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(B, K, generator=generator, dtype=dtype)).requires_grad_()
    values = 3 * torch.randn(B, K, generator=generator, dtype=dtype)
    mask = torch.rand(B, K, generator=generator) < 0.6
    mask[:, 2] = True
    return logits, values, mask if masked else None


def test_which_have_a_closed_form():
    logits, values, _ = draws(torch.float32, masked=False)
    dist = FactoredCategorical(logits)
    ours = (name for name, cls in ESTIMATORS.items() if cls.__module__.startswith("gumbelrl."))
    made = {name: make_estimator(name) for name in ours}  # other tests register their own
    found = {name for name, each in made.items() if each.on_table(dist, values) is not None}
    assert found == set(CLOSED)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}])
@pytest.mark.parametrize("name", CLOSED)
def test_it_is_what_autograd_gives(name, settings, masked):
    if name == "exact" and settings:
        pytest.skip("exact has no temperature")
    logits, values, mask = draws(torch.float64, masked)
    estimator = make_estimator(name, **settings)
    dist = FactoredCategorical(logits, mask=mask)
    value = estimator(dist, Table(values), torch.Generator().manual_seed(7))
    value.sum().backward()
    found, slope = estimator.on_table(dist, values, torch.Generator().manual_seed(7))
    assert not found.requires_grad
    assert not slope.requires_grad
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(slope, logits.grad)
    if masked:
        assert (slope[~mask] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_entropy_and_its_slope(masked):
    logits, _, mask = draws(torch.float64, masked)
    dist = FactoredCategorical(logits, mask=mask)
    dist.entropy().sum().backward()
    entropy, slope = dist.entropy_and_slope()
    torch.testing.assert_close(entropy, dist.entropy().detach())
    torch.testing.assert_close(slope.squeeze(-2), logits.grad)


def test_a_learned_temperature_leaves_no_graph():
    logits, values, _ = draws(torch.float32, masked=False)
    made = make_estimator("st_gumbel", temperature=LearnedTemperature(0.7))
    found = made.on_table(FactoredCategorical(logits), values)
    assert not any(part.requires_grad for part in found)


@pytest.mark.parametrize("name", ["straight_through", "exact"])
def test_a_subclass_with_a_call_of_its_own_has_none(name):
    class Own(type(make_estimator(name))):
        def forward(self, dist, f, generator=None):
            return 2 * super().forward(dist, f, generator)

    logits, values, _ = draws(torch.float32, masked=False)
    assert Own().on_table(FactoredCategorical(logits), values) is None
