"""References are reached or nearly reached by something, and no simple search does better."""

from itertools import product

import numpy as np
import pytest
import torch
from gumbelrl.envs import make_task, on_device_ids
from gumbelrl.envs.coupled_control import CoupledControl
from gumbelrl.envs.inventory import Inventory
from gumbelrl.envs.references import grid_policy
from gumbelrl.envs.simulation import mean_return, random_return
from gumbelrl.envs.speaker_listener import SpeakerListener
from gumbelrl.envs.switched_lqr import SwitchedLQR


@pytest.mark.parametrize("id", [id for id in on_device_ids() if id.startswith("gumbelrl/")])
def test_reference_is_far_above_random(id):
    task = make_task(id)
    value, how = task.reference()
    assert how
    random = random_return(task, n_episodes=256)
    assert value > 0.6 * random if random < 0 else value > 10 * random


def test_cartpole_reference_is_reached_by_a_linear_policy():
    def policy(state):
        lean = state @ torch.tensor([0.1, 0.3, 1.0, 0.4])
        return (lean > 0).long().unsqueeze(-1)

    assert mean_return(make_task("CartPole-v1"), policy, n_episodes=64) == 500.0


def test_mountain_car_reference_beats_pushing_along():
    def policy(state):
        return torch.where(state[:, 1:] < 0, 0, 2)

    task = make_task("MountainCar-v0")
    along = mean_return(task, policy, n_episodes=256)
    assert -130 < along < task.reference()[0] < -90


def test_pendulum_reference_beats_energy_shaping():
    task = make_task("Pendulum-v1")

    def policy(state):
        theta, speed = state.unbind(-1)
        angle = torch.remainder(theta + torch.pi, 2 * torch.pi) - torch.pi
        energy = speed.square() / 6 + 5 * (angle.cos() - 1)  # 0 at rest upright
        swing = torch.where(energy < 0, speed.sign(), -speed.sign()) * 2
        torque = torch.where(angle.abs() < 0.5, -10 * angle - 2 * speed, swing)
        return (torque.round().clamp(-2, 2) + 2).long().unsqueeze(-1)

    shaped = mean_return(task, policy, n_episodes=256)
    assert -400 < shaped < task.reference()[0] < -120


def test_acrobot_reference_beats_pumping_energy():
    def policy(state):
        return torch.where(state[:, 3:] < 0, 0, 2)  # torque along the elbow's velocity

    task = make_task("Acrobot-v1")
    pumped = mean_return(task, policy, n_episodes=256)
    assert -200 < pumped < task.reference()[0] < -55


@pytest.mark.parametrize(("n_bins", "gap"), [(3, 0.04), (5, 0.01)])
def test_coupled_control_of_one_joint_is_near_dynamic_programming(n_bins, gap):
    task = CoupledControl(1, n_bins)
    policy = grid_policy(task, (-1.5, -2.5), (1.5, 2.5), (201, 301), gamma=1.0)
    planned = mean_return(task, policy, n_episodes=512)
    greedy = float(task.greedy_return(512).mean())
    assert planned == pytest.approx(greedy, rel=gap)
    assert greedy < task.lqr()[1]


def test_coupled_control_matrices_are_its_dynamics():
    task = CoupledControl(4)
    a, b, q, r = task.matrices()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    index = torch.randint(5, (5, 4), generator=generator)
    u = torch.as_tensor(task.torques)[index]
    one_hot = torch.nn.functional.one_hot(index, 5).double().flatten(-2)
    following = task.transition(x, one_hot, x[:, :0])
    torch.testing.assert_close(following, x @ a.T + u @ b.T)
    cost = torch.einsum("ni,ij,nj->n", following, q, following)
    cost = cost + torch.einsum("ni,ij,nj->n", u, r, u)
    torch.testing.assert_close(task.reward(x, one_hot, following), -cost)


def test_coupled_control_reference_is_not_beaten_by_local_search():
    """Changing single torques of the greedy sequence for 8 joints, 300 times, gains under 5 %."""
    task = CoupledControl(8)
    rng = np.random.default_rng(0)
    a, b, q, r = (m.numpy() for m in task.matrices())
    n_episodes, horizon = 16, task.max_episode_steps
    noise = torch.rand(n_episodes, 8, generator=torch.Generator().manual_seed(0))
    start = task.initial(noise.double()).numpy()
    greedy = task.greedy_return(n_episodes, seed=0).numpy()
    bound = task.lqr()[1]

    def cost(u):  # (N, T, M) -> (N,)
        x, total = start, 0.0
        for t in range(horizon):
            x = x @ a.T + u[:, t] @ b.T
            total = total + ((x @ q) * x).sum(1) + ((u[:, t] @ r) * u[:, t]).sum(1)
        return total

    # From the free optimum, rounded: the sequence that greedy improves on.
    costs, x, u = task.lqr()[0], start, np.zeros((n_episodes, horizon, 8))
    for t in range(horizon):
        p = q + costs[t + 1].numpy()
        free = -x @ (np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)).T
        u[:, t] = np.clip(np.round(free), -2, 2)
        x = x @ a.T + u[:, t] @ b.T
    best = cost(u)
    for _ in range(300):
        trial = u.copy()
        rows = np.arange(n_episodes)
        trial[rows, rng.integers(horizon, size=n_episodes), rng.integers(8, size=n_episodes)] = (
            rng.integers(-2, 3, size=n_episodes)
        )
        trial_cost = cost(trial)
        better = trial_cost < best
        u[better], best[better] = trial[better], trial_cost[better]
    assert -best.mean() < greedy.mean() * 0.95  # both are negative
    assert greedy.mean() < bound + 0.3  # 16 starts only


@pytest.mark.parametrize(("n_modes", "state_dim"), [(2, 2), (4, 4)])
def test_switched_lqr_policy_is_near_brute_force(n_modes, state_dim):
    """All K^8 sequences of modes for an episode of 8 steps."""
    task = SwitchedLQR(n_modes, state_dim)
    task.max_episode_steps = 8
    n = 24
    noise = torch.rand(n, state_dim, generator=torch.Generator().manual_seed(0))
    start = task.initial(noise).numpy()
    x, returns = start[:, None], np.zeros((n, 1))
    for _ in range(8):
        x = np.einsum("kij,nsj->nski", task.modes, x)
        returns = (returns[:, :, None] - (x**2).mean(-1)).reshape(n, -1)
        x = x.reshape(n, -1, state_dim)
    optimum = returns.max(1)

    policy, state, total = task.planned_policy(), task.initial(noise), torch.zeros(n)
    for _ in range(8):
        one_hot = torch.eye(n_modes)[policy(state)[:, 0]]
        state = task.transition(state, one_hot, state[:, :0])
        total += task.reward(state, one_hot, state)
    assert (total.numpy() < optimum + 1e-5).all()
    assert total.mean() > 1.001 * optimum.mean()  # both are negative


def test_inventory_policy_of_one_product_is_near_dynamic_programming():
    """The price of space stands in for the overflow, which this table prices exactly."""
    task = Inventory(1)
    n, top = 301, 30.0
    stock = torch.linspace(0, top, n)
    orders = torch.as_tensor(task.bins * task.order_unit, dtype=torch.float32)  # (K,)
    demand = task.demand((torch.arange(64).unsqueeze(1) + 0.5) / 64)[:, 0]  # (U,)
    left = stock[:, None, None] + orders[:, None] - demand  # (I, arriving, U)
    following = 0.9 * left.relu()
    overflow = (following.unsqueeze(-1) + orders - 6).relu()  # (I, arriving, U, order)
    cost = (following + 5 * (-left).relu()).unsqueeze(-1) + 2 * overflow
    at = following * ((n - 1) / top)
    cell = at.long().clamp(max=n - 2)
    weight = (at - cell).unsqueeze(-1)
    value = torch.zeros(n, 6)
    for _ in range(40):
        ahead = value[cell].lerp(value[cell + 1], weight)
        value, table = (ahead - cost).mean(2).max(-1)

    def policy(state):
        row = (state[:, 0] * ((n - 1) / top)).round().long().clamp(max=n - 1)
        arriving = (state[:, 1:2] - orders).abs().argmin(-1)
        return table[row, arriving].unsqueeze(-1)

    optimum = mean_return(task, policy)
    assert task.reference()[0] == pytest.approx(optimum, rel=0.01)


def test_inventory_reference_is_not_beaten_by_base_stock():
    """Ordering up to a level, for 100 random pairs of levels, all near where the best ones are."""
    task = Inventory(2)
    reference = task.reference()[0]
    unit = torch.as_tensor(task.order_unit, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(100):
        levels = torch.as_tensor(task.mean_demand).float()
        levels = levels * (1.8 + torch.rand(2, generator=generator))

        def policy(state, levels=levels):
            lacking = levels - state[:, :2] - state[:, 2:4]
            return (lacking / unit).round().clamp(0, 5).long()

        found.append(mean_return(task, policy, n_episodes=256))
    assert 1.15 * reference < max(found) < reference  # all negative


def test_inventory_demand_has_its_mean():
    task = Inventory(3)
    demand = task.demand(torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)))
    assert demand.mean(0).tolist() == pytest.approx([2, 4, 6], rel=0.01)  # 5 standard errors: 0.6 %


def test_speaker_listener_optimum_is_reached_by_an_explicit_code():
    """Symbol = goal; then walk along x, then along y."""
    task = SpeakerListener()
    landmarks = torch.as_tensor(task.landmarks, dtype=torch.float32)

    def policy(state):
        symbol = state[:, 1:9].argmax(-1)
        way = landmarks[state[:, 9:17].argmax(-1)] - state[:, 17:]
        along_x = torch.where(way[:, 0] > 0, 1, 2)
        along_y = torch.where(way[:, 1] > 0, 3, 4)
        move = torch.where(way[:, 1].abs() > 0.1, along_y, 0)
        # Shorten the longer way first, which the squared distance rewards most.
        move = torch.where(way[:, 0].abs() >= way[:, 1].abs().clamp(min=0.1), along_x, move)
        return torch.stack((symbol, move), -1)

    reached = mean_return(task, policy, n_episodes=8000)
    # Returns are -0.5 or -1.75 by goal: 5 standard errors of 8,000 are 0.04.
    assert reached == pytest.approx(task.best_return(), abs=0.04)


@pytest.mark.parametrize(("n_goals", "n_symbols"), [(2, 2), (3, 2), (4, 3)])
def test_speaker_listener_optimum_by_enumeration(n_goals, n_symbols):
    """Every code, and for every symbol every walk, in two lines of brute force."""
    task = SpeakerListener(n_goals, n_symbols)
    walks = [np.cumsum(walk, 0) for walk in product(task.moves, repeat=4)]
    value = [[-((w - goal) ** 2).sum() for goal in task.landmarks] for w in walks]
    value = np.array(value)  # (625, G)
    best = max(
        sum(
            value[:, [g for g in range(n_goals) if code[g] == symbol]].sum(1).max()
            for symbol in set(code)
        )
        for code in product(range(n_symbols), repeat=n_goals)
    )
    assert task.best_return() == pytest.approx(best / n_goals)


def test_speaker_listener_has_no_channel_but_the_message():
    """After the first step, observations for two goals differ in nothing but the message."""
    task = SpeakerListener()
    state = task.initial(torch.tensor([[0.0], [0.9]]))  # goals 0 and 7
    assert not torch.equal(task.observe(state)[0], task.observe(state)[1])
    for move in range(5):
        one_hot = torch.zeros(2, 13)
        one_hot[:, 3] = one_hot[:, 8 + move] = 1
        following = task.transition(state, one_hot, state[:, :0])
        for _ in range(3):
            assert torch.equal(task.observe(following)[0], task.observe(following)[1])
            following = task.transition(following, one_hot, state[:, :0])
