"""Videos of episodes, written frame by frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from gumbelrl.tracking.evaluation import MakeEnv, WithMasks, undisturbed

MAX_FRAMES = 3000  # of one video; a longer episode is cut


class CannotRender(ValueError):
    """The environment draws nothing, or the encoder is missing; the message says which."""


def record_episode(
    agent: Any, make_env: MakeEnv, path: str | Path, seed: int, deterministic: bool = True
) -> tuple[float, int]:
    """Play one episode in an environment made for it, and write what it looks like.

    Training is left as it was, as by `evaluate`. The file stands complete or not at all.

    Args:
        agent: anything with Stable-Baselines3's `predict`.
        make_env: `make_env(n_envs, seed) -> VecEnv`, rendering as "rgb_array".
        path: the file, such as videos/step-000004000.mp4; its folder is made.
        seed: of the environment, >= 0.
        deterministic: take the most likely action instead of a sampled one.

    Returns:
        The undiscounted return and the length in env steps of what is on the video.

    Raises:
        CannotRender: the environment gives no frames, or imageio-ffmpeg is not installed.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise CannotRender('a package is missing; run: pip install "gumbelrl[video]"') from error
    path = Path(path)
    with undisturbed(agent):
        try:
            env = make_env(1, seed)
        except ValueError as error:
            raise CannotRender(str(error)) from error
        temporary = path.with_name(f".{path.name}")
        try:
            actor, observation = WithMasks(agent, env), env.reset()
            frame = _frame(env)
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = frame.shape[:2]
            video = imageio_ffmpeg.write_frames(
                str(temporary),
                (width, height),
                fps=int(_metadata(env).get("render_fps") or 30),
                macro_block_size=2,  # H.264 wants even sides
                output_params=["-f", "mp4"],
            )
            video.send(None)
            try:
                total, length, done = 0.0, 0, False
                while not done and length < MAX_FRAMES:
                    video.send(np.ascontiguousarray(frame))
                    action, _ = actor.predict(observation, deterministic=deterministic)
                    observation, rewards, dones, _ = env.step(action)
                    total, length, done = total + float(rewards[0]), length + 1, bool(dones[0])
                    frame = _frame(env)
            finally:
                video.close()
            os.replace(temporary, path)
        finally:
            env.close()
            temporary.unlink(missing_ok=True)
    return total, length


def _frame(env: Any) -> np.ndarray:
    frame = env.get_images()[0]
    if not isinstance(frame, np.ndarray) or frame.ndim != 3:
        raise CannotRender("the environment gives no frames")
    return frame


def _metadata(env: Any) -> dict[str, Any]:
    return env.get_attr("metadata")[0]
