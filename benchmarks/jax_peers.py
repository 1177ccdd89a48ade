"""JAX peers on CartPole: gymnax's environment and rejax's PPO, where `gumbelrl[jax]` is installed.

rejax's PPO (https://github.com/keraJLi/rejax, Apache 2.0) descends from PureJaxRL: environment,
rollout and update are one compiled function. Its settings here are those that rejax publishes for
gymnax's CartPole (configs/gymnax/cartpole.yaml). XLA gets one thread, as torch does beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

# XLA on the CPU with one thread; read when jax is first imported.
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "1",  # the size of XLA's thread pools
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
NOT_INSTALLED = "not installed: pip install 'gumbelrl[jax]'"
PPO_SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1",
    "agent_kwargs": {"activation": "tanh"},
    "num_envs": 5,
    "num_steps": 100,
    "num_epochs": 5,
    "num_minibatches": 5,
    "learning_rate": 0.00075,
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_eps": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
}


def installed() -> bool:
    """Whether gymnax and rejax can be imported."""
    return all(find_spec(name) for name in ("jax", "gymnax", "rejax"))


def import_jax() -> Any:
    """jax on the CPU with one thread."""
    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    import jax

    return jax


def gymnax_steps(n: int) -> tuple[Callable[[int], object], Callable[[int], object], float]:
    """gymnax's CartPole: one step of N, a scan of 64 steps of N, processor seconds of compiling.

    The single step is what a caller outside JAX pays; inside a compiled training loop it is the
    scan. Actions are drawn beforehand, resets are part of the step.
    """
    jax = import_jax()
    import gymnax

    env, params = gymnax.make("CartPole-v1")
    key = jax.random.key(0)
    actions = jax.random.randint(jax.random.key(1), (64, n), 0, 2)
    step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    @jax.jit
    def one(key: Any, state: Any, action: Any) -> Any:
        key, draw = jax.random.split(key)
        obs, state, reward, done, _ = step(jax.random.split(draw, n), state, action, params)
        return key, state, obs, reward, done

    @jax.jit
    def many(key: Any, state: Any) -> Any:
        def body(carry: Any, action: Any) -> Any:
            key, state, *seen = one(*carry, action)
            return (key, state), tuple(seen)  # kept, as a rollout keeps them

        return jax.lax.scan(body, (key, state), actions)

    _, state = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(key, n), params)
    began = time.process_time()
    jax.block_until_ready((one(key, state, actions[0]), many(key, state)))
    seconds = time.process_time() - began
    rows = list(actions)  # an index into a JAX array costs more than a step
    carries = {one: (key, state), many: (key, state)}

    def call_one(t: int) -> None:
        new_key, new_state, *_ = jax.block_until_ready(one(*carries[one], rows[t % 64]))
        carries[one] = (new_key, new_state)

    def call_many(t: int) -> None:
        carries[many], _ = jax.block_until_ready(many(*carries[many]))

    return call_one, call_many, seconds


class RejaxPPO:
    """rejax's PPO on gymnax's CartPole, an iteration (rollout and update) at a time.

    Args:
        seed: of everything.
        settings: in place of those in `PPO_SETTINGS`.

    `compile_seconds` is the processor time that compiling the iteration took.
    """

    def __init__(self, seed: int, **settings: Any) -> None:
        jax = import_jax()
        from rejax import PPO

        self._jax = jax
        self._ppo = PPO.create(**{**PPO_SETTINGS, **settings})
        actor = self._ppo.actor
        self._mode = jax.jit(
            lambda params, obs: actor.apply(params, obs, method="_action_dist").logits.argmax(-1)
        )
        self.state = self._ppo.init_state(jax.random.key(seed))
        self.num_timesteps = 0
        began = time.process_time()
        iterate = jax.jit(self._ppo.train_iteration)
        self._iterate = iterate.lower(self.state).compile()
        self.compile_seconds = time.process_time() - began

    def set_logger(self, logger: Any) -> None:
        """What Stable-Baselines3's callbacks write to."""
        self.logger = logger

    def learn(self, total_timesteps: int, callback: Any = None, **_: Any) -> RejaxPPO:
        """At least `total_timesteps` more steps; waits until they are done.

        A callback, one of Stable-Baselines3's, is asked after each iteration.
        """
        steps = self._ppo.num_envs * self._ppo.num_steps
        if callback is not None:
            callback.init_callback(self)
            callback.on_training_start({}, {})
        for _ in range(-(-total_timesteps // steps)):
            self.state = self._iterate(self.state)
            self.num_timesteps += steps
            if callback is not None:
                self._jax.block_until_ready(self.state)
                if not callback.on_step():
                    break
        self._jax.block_until_ready(self.state)
        return self

    def predict(
        self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, None]:
        """Most likely actions [B] for observations [B, 4], as Stable-Baselines3's `predict`."""
        import numpy as np

        if not deterministic:
            raise ValueError("only the most likely action is offered")
        return np.asarray(self._mode(self.state.actor_ts.params, obs), np.int64), None
