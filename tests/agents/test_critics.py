"""Critics: one contract, checked against the plain formula."""

import pytest
import torch
from gumbelrl.agents.critics import (
    CRITICS,
    ActionInCritic,
    CriticObjective,
    HeadsCritic,
    MultilinearCritic,
)
from gumbelrl.agents.networks import ensemble_mlp

B, D, K = 5, 3, 4


def make(cls, nvec=(K,)):
    torch.manual_seed(0)
    return cls(D, nvec, [8, 6], n_critics=2).double()


@pytest.mark.parametrize("cls", CRITICS.values())
def test_table_is_q_at_every_action(cls):
    critic = make(cls)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    table = critic.table(embedding)  # (C, B, K)
    one_hots = torch.eye(K, dtype=torch.float64).unsqueeze(1).expand(K, B, K)
    torch.testing.assert_close(critic.q(embedding, one_hots), table.permute(0, 2, 1))
    assert table.shape == (2, B, K)


@pytest.mark.parametrize("cls", CRITICS.values())
def test_leading_sample_axes(cls):
    critic = make(cls)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    one_hot = torch.randn(7, 2, B, K, dtype=torch.float64)
    q = critic.q(embedding, one_hot)
    assert q.shape == (2, 7, 2, B)
    torch.testing.assert_close(q[:, 3, 1], critic.q(embedding, one_hot[3, 1]))


def test_split_first_layer_is_the_plain_perceptron_on_the_concatenation():
    critic = make(ActionInCritic, (2, 3))
    x = torch.randn(B, D, dtype=torch.float64)
    action = torch.randn(B, 5, dtype=torch.float64)
    q = critic.q(critic.embed(x), action)
    hidden_layer, output_layer = critic.rest[1][0], critic.rest[1][2]
    for c in range(2):
        h = torch.relu(torch.cat([x, action], -1) @ critic.first.weight[c] + critic.first.bias[c])
        h = torch.relu(h @ hidden_layer.weight[c] + hidden_layer.bias[c])
        torch.testing.assert_close(q[c], (h @ output_layer.weight[c] + output_layer.bias[c])[:, 0])


def test_critics_of_an_ensemble_are_independent():
    critic = make(HeadsCritic)
    x = torch.randn(B, D, dtype=torch.float64)
    critic.embed(x)[0].sum().backward()
    for parameter in critic.parameters():
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


def test_objective_mean_and_per_action_minimum():
    critic = make(HeadsCritic)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    one_hot = torch.eye(K, dtype=torch.float64)[torch.tensor([0, 1, 2, 3, 0])]
    mean = CriticObjective(critic, embedding, "mean")
    low = CriticObjective(critic, embedding, "min")
    torch.testing.assert_close(mean.table(), embedding.mean(0))
    torch.testing.assert_close(low.table(), embedding.amin(0))
    torch.testing.assert_close(low(one_hot), (embedding.amin(0) * one_hot).sum(-1))


def test_the_minimum_needs_per_action_values():
    critic = make(ActionInCritic)
    with pytest.raises(ValueError, match="critic='multilinear'"):
        CriticObjective(critic, critic.embed(torch.zeros(B, D, dtype=torch.float64)), "min")


def test_per_factor_is_offered_only_where_the_critic_has_it():
    x = torch.zeros(B, D, dtype=torch.float64)
    for cls in CRITICS.values():
        critic = make(cls)
        objective = CriticObjective(critic, critic.embed(x))
        assert hasattr(objective, "per_factor") == (cls is not ActionInCritic)


@pytest.mark.parametrize(
    ("cls", "nvec"),
    [(HeadsCritic, (K,)), (MultilinearCritic, (K,)), (MultilinearCritic, (2, 3, 4))],
)
def test_per_factor_is_q_at_every_neighbour(cls, nvec):
    critic = make(cls, nvec)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    one_hot = sampled((7, B), nvec)
    values = critic.per_factor(embedding, one_hot)
    assert values.shape == (2, 7, B, sum(nvec))
    start = 0
    for size in nvec:
        for k in range(start, start + size):
            neighbour = one_hot.clone()
            neighbour[..., start : start + size] = 0
            neighbour[..., k] = 1
            torch.testing.assert_close(values[..., k], critic.q(embedding, neighbour))
        start += size


def sampled(shape, nvec):
    """Random one-hots [*shape, ΣK] of the factors."""
    one_hots = [torch.nn.functional.one_hot(torch.randint(k, shape), k) for k in nvec]
    return torch.cat(one_hots, -1).double()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("cls", CRITICS.values())
def test_an_ensemble_is_its_members(cls, layer_norm):
    torch.manual_seed(0)
    nvec = (K,) if cls is HeadsCritic else (2, 3, 4)
    ensemble = cls(D, nvec, [8, 6], n_critics=3, layer_norm=layer_norm).double()
    x, one_hot = torch.randn(B, D, dtype=torch.float64), sampled((B,), nvec)
    q = ensemble.q(ensemble.embed(x), one_hot)
    for c in range(3):
        member = cls(D, nvec, [8, 6], n_critics=1, layer_norm=layer_norm).double()
        member.load_state_dict({k: v[c : c + 1] for k, v in ensemble.state_dict().items()})
        torch.testing.assert_close(q[c], member.q(member.embed(x), one_hot)[0])


def test_layer_norm_is_torchs_member_by_member():
    torch.manual_seed(0)
    net = ensemble_mlp(2, D, [8, 6], 1, "tanh", layer_norm=True).double()
    for parameter in net.parameters():
        parameter.data.normal_()
    x = torch.randn(B, D, dtype=torch.float64)
    for c in range(2):
        h = x
        for i, width in ((0, 8), (3, 6)):
            norm = torch.nn.LayerNorm(width).double()
            norm.load_state_dict({"weight": net[i + 1].weight[c, 0], "bias": net[i + 1].bias[c, 0]})
            h = norm(h @ net[i].weight[c] + net[i].bias[c]).tanh()
        torch.testing.assert_close(net(x)[c], h @ net[6].weight[c] + net[6].bias[c])


def test_heads_refuse_more_than_one_factor():
    with pytest.raises(ValueError, match="action_in"):
        make(HeadsCritic, (2, 3))
