"""Send a run to a tracker that missed it: python -m gumbelrl.tracking.resend csv RUN_FOLDER

Reads metrics.jsonl, which has every row. CSV is written anew; TensorBoard gets a run of its own
beside what it has, tensorboard/from-metrics; Weights & Biases (wandb) a new run in the same group,
online or offline as in training.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence

from gumbelrl.tracking.error_text import first_line
from gumbelrl.tracking.metrics import read_metrics
from gumbelrl.tracking.run_folder import RunFolder, RunFolderError
from gumbelrl.tracking.settings import TrackingSettings
from stable_baselines3.common.logger import KVWriter

# Of the configuration of a run folder, which is data: no writers, whose modules would be imported.
_WANDB_KEYS = ("mode", "project", "entity", "group", "job_type", "name", "notes", "tags")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the tracker failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="resend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tracker", choices=["csv", "tensorboard", "wandb"])
    parser.add_argument("run", help="the run folder")
    given = parser.parse_args(argv)
    try:
        folder = RunFolder.open(given.run)
        send = {"csv": to_csv, "tensorboard": to_tensorboard, "wandb": to_wandb}[given.tracker]
        where, done = send(folder)
    except (RunFolderError, ValueError, OSError) as error:
        print(f"resend: {first_line(error)}", file=sys.stderr)
        return 2
    print(where)
    return 0 if done else 1


def to_csv(folder: RunFolder) -> tuple[str, bool]:
    """Write metrics.csv anew; returns where."""
    from gumbelrl.tracking.csv_output import CsvWriter

    path = folder.path / "metrics.csv"
    CsvWriter(path, read_metrics(folder.metrics_path)).close()
    return str(path), True


def to_tensorboard(folder: RunFolder) -> tuple[str, bool]:
    """Write event files under tensorboard/from-metrics anew; returns where."""
    TrackingSettings(mode="disabled", tensorboard=True)  # says what to install
    from gumbelrl.tracking.tensorboard_output import TensorBoardWriter

    path = folder.path / "tensorboard" / "from-metrics"
    shutil.rmtree(path, ignore_errors=True)
    writer = TensorBoardWriter(path)
    _replay(folder, [writer])
    writer.close()
    return str(path), True


def to_wandb(folder: RunFolder) -> tuple[str, bool]:
    """Make a W&B run of what the folder holds; returns where it is and whether all went well."""
    from gumbelrl.tracking.trackers import Trackers

    config = folder.read_config()
    stored = {**config.get("tracking", {})}
    settings = TrackingSettings(**{key: stored[key] for key in _WANDB_KEYS if key in stored})
    trackers = Trackers(settings, folder)
    lines = trackers.start(config)
    if trackers.wandb is None:
        return f"{lines[0]} Nothing was sent", False
    _replay(folder, [trackers.wandb])
    trackers.finish(folder.read_summary() if folder.summary_path.is_file() else {}, 0)
    failure = trackers.wandb.failure
    rows = [trackers.wandb.reason, *(f"{name}: {text}" for name, text in trackers.report())]
    return "\n".join(rows), failure is None


def _replay(folder: RunFolder, outputs: Iterable[KVWriter]) -> None:
    for row in read_metrics(folder.metrics_path):
        values = {key: value for key, value in row.items() if key != "env_steps"}
        for output in outputs:
            output.write(values, dict.fromkeys(values, ("",)), row["env_steps"])


if __name__ == "__main__":
    sys.exit(main())
