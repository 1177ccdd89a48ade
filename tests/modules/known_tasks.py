"""On-device tasks whose gradients and values are known. Importing registers their ids."""

import torch
from gumbelrl.envs.on_device import OnDeviceEnv
from gumbelrl.envs.registration import register_on_device
from torch import Tensor


class Bandit(OnDeviceEnv):
    """Reward <one_hot, c> and the episode terminates: E[reward] has the gradient J(π) c."""

    state_dim = observation_dim = 3
    nvec = (2, 3)
    n_initial_noise = 3
    values = (1.0, -1.0, 0.5, 2.0, -0.5)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        return state

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return one_hot @ one_hot.new_tensor(self.values)

    def terminated(self, state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0], dtype=torch.bool)


class Walk(OnDeviceEnv):
    """s' = s + <one_hot, (-1, 0, 1)>, reward −s'²; nothing ends it but the time limit."""

    state_dim = observation_dim = 1
    nvec = (3,)
    n_initial_noise = 1
    max_episode_steps = 20

    def initial(self, noise: Tensor) -> Tensor:
        return 8 * noise - 4

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        return state + (one_hot @ one_hot.new_tensor([-1.0, 0.0, 1.0])).unsqueeze(-1)

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return -next_state[..., 0].square()


class Constant(OnDeviceEnv):
    """One state, reward 1, every step the last: by termination, or by the time limit."""

    state_dim = observation_dim = 1
    nvec = (2,)

    def __init__(self, terminate: bool = False) -> None:
        self.terminate = terminate
        self.max_episode_steps = None if terminate else 1

    def initial(self, noise: Tensor) -> Tensor:
        return noise.new_ones((*noise.shape[:-1], 1))

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        return state

    def reward(self, state: Tensor, one_hot: Tensor, next_state: Tensor) -> Tensor:
        return torch.ones_like(state[..., 0])

    def terminated(self, state: Tensor) -> Tensor:
        return torch.full_like(state[..., 0], self.terminate, dtype=torch.bool)


class Terminating(Constant):
    """`Constant` that terminates."""

    def __init__(self) -> None:
        super().__init__(terminate=True)


class Breaking(Walk):
    """`Walk` whose state turns NaN with its fourth step."""

    state_dim = observation_dim = 2

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat((noise, torch.zeros_like(noise)), -1)

    def transition(self, state: Tensor, one_hot: Tensor, noise: Tensor) -> Tensor:
        steps = state[..., 1:] + 1
        moved = super().transition(state[..., :1], one_hot, noise)
        return torch.cat((moved, steps), -1) + 0 * (3.5 - steps).sqrt()  # √ of a negative is NaN


for name, limit in (
    ("Bandit", None),
    ("Walk", 20),
    ("Breaking", 20),
    ("Constant", 1),
    ("Terminating", None),
):
    register_on_device(f"known/{name}-v0", f"known_tasks:{name}", limit)
