"""An environment that does something to a disk while a run trains in it."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
from known_envs import OneState


class Troubling(OneState):
    """Episodes of ten steps; at some step of the process something happens, if TROUBLE=True.

    Args:
        events: step -> "fill" a disk, "free" it, make a folder "read_only", "remove" it.
        folder: where.
    """

    steps: ClassVar[int] = 0

    def __init__(self, events: dict[int, str], folder: str) -> None:
        super().__init__(truncate=False, length=10)
        self.events, self.folder = events, Path(folder)

    def step(self, action: Any) -> Any:
        Troubling.steps += 1
        match self.events.get(Troubling.steps) if os.environ["TROUBLE"] == "True" else None:
            case "fill":
                with open(self.folder / "filler", "wb", buffering=0) as file:
                    for size in (65536, 4096, 1):
                        with contextlib.suppress(OSError):
                            while True:
                                file.write(b"x" * size)
            case "free":
                (self.folder / "filler").unlink()
            case "read_only":
                here = str(self.folder)
                subprocess.run(["mount", "--bind", here, here], check=True)
                subprocess.run(["mount", "-o", "remount,bind,ro", here], check=True)
            case "remove":
                shutil.rmtree(self.folder)
        return super().step(action)


gym.register("Troubling-v0", Troubling)
