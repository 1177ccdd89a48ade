"""What a `.wandb` file holds, by W&B's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def inspect(path: Path) -> list[dict[str, Any]]:
    """Records of a W&B run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in answer.stdout.splitlines()]


def described(path: Path) -> dict[str, Any]:
    """What a W&B run says of itself at its start."""
    (run,) = [record["run"] for record in inspect(path) if record["type"] == "run"]
    return dict(run)
