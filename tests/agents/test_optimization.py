"""Our Adam is torch's."""

import copy

import torch
from gumbelrl.agents.optimization import Adam


def problem():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(4))]


def descend(optimizer, parameters, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((parameters[0] @ parameters[1]) ** 2).sum() + parameters[1].cos().sum()
        loss.backward()
        optimizer.step()


def test_steps_and_files_are_those_of_torch():
    theirs, ours = problem(), problem()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95)}
    adam, mine = torch.optim.Adam(theirs, fused=True, **settings), Adam(ours, **settings)
    descend(adam, theirs, 5)
    descend(mine, ours, 5)
    stored = copy.deepcopy(adam.state_dict())
    assert stored["param_groups"] == mine.state_dict()["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))

    fresh = Adam(ours, lr=1.0)
    fresh.load_state_dict(stored)
    descend(adam, theirs, 5)
    descend(fresh, ours, 5)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_hooks_of_torch_are_called_once_a_step():
    parameters, seen = problem(), []
    optimizer = Adam(parameters, lr=1e-3)
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    descend(optimizer, parameters, 3)
    assert len(seen) == 3
    assert optimizer.step(lambda: 7.0) == 7.0
