"""Critics: one contract, checked against the plain formula."""

import pytest
import torch
from gumbelrl.agents.critics import ActionInCritic, CriticObjective, HeadsCritic

B, D, K = 5, 3, 4


def make(cls, nvec=(K,)):
    torch.manual_seed(0)
    return cls(D, nvec, [8, 6], n_critics=2).double()


@pytest.mark.parametrize("cls", [HeadsCritic, ActionInCritic])
def test_table_is_q_at_every_action(cls):
    critic = make(cls)
    embedding = critic.embed(torch.randn(B, D, dtype=torch.float64))
    table = critic.table(embedding)  # (C, B, K)
    one_hots = torch.eye(K, dtype=torch.float64).unsqueeze(1).expand(K, B, K)
    torch.testing.assert_close(critic.q(embedding, one_hots), table.permute(0, 2, 1))
    assert table.shape == (2, B, K)


@pytest.mark.parametrize("cls", [HeadsCritic, ActionInCritic])
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


def test_heads_refuse_more_than_one_factor():
    with pytest.raises(ValueError, match="action_in"):
        make(HeadsCritic, (2, 3))
