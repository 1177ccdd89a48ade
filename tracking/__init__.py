"""What a run writes down: its folder, its metrics, its evaluations, its checkpoints.

Names are imported when they are first used, so `import gumbelrl.tracking` loads neither torch nor
wandb.

| name | what it is |
|---|---|
| `RunFolder`, `RunFolderError`, `write_atomically` | the folder of one run |
| `default_run_dir`, `run_stem` | its name |
| `JsonlWriter`, `read_metrics`, `cut_metrics` | `metrics.jsonl`, the first record |
| `EpisodesWriter` | `evaluations.jsonl`, every episode of every evaluation |
| `TrackingSettings`, `Trackers` | what stands behind them, as one |
| `BackgroundWriter` | any tracker in a thread of its own, so that it can do no harm |
| `WandbTracker`, `resolve_mode` | Weights & Biases |
| `CsvWriter`, `TensorBoardWriter` | the others |
| `record_episode` | a video |
| `evaluate`, `Evaluation`, `EvaluationCallback`, `log_evaluation` | how good the agent is |
| `CheckpointCallback`, `latest`, `best`, `previous` | what a run can go on from |
| `open_checkpoint`, `Checkpoint`, `reading` | checked before it is used |
| `LogCallback`, `restart_environments` | rows of metrics, fresh environments at checkpoints |
| `StopSignals`, `StopCallback` | Ctrl-C and its like |
| `Heartbeat`, `Beat`, `read_heartbeat` | whether a run is alive |
| `random_state`, `set_random_state` | the global random streams |
| `brief`, `first_line` | an error in one line |
| `ProgressCallback` | what the user sees meanwhile |
| `end_table`, `environment_versions`, `git_commit` | what stands at the end |
| `derive_seed`, `final_evaluation_seed` | independent seeds from one |
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumbelrl.tracking.background import BackgroundWriter
    from gumbelrl.tracking.checkpoints import (
        CheckpointCallback,
        best,
        latest,
        open_checkpoint,
        previous,
    )
    from gumbelrl.tracking.csv_output import CsvWriter
    from gumbelrl.tracking.error_text import brief, first_line
    from gumbelrl.tracking.evaluation import (
        Evaluation,
        EvaluationCallback,
        Reached,
        evaluate,
        log_evaluation,
    )
    from gumbelrl.tracking.git_source import git_commit
    from gumbelrl.tracking.heartbeat import Beat, Heartbeat, read_heartbeat
    from gumbelrl.tracking.manifest import Checkpoint, reading
    from gumbelrl.tracking.metrics import EpisodesWriter, JsonlWriter, cut_metrics, read_metrics
    from gumbelrl.tracking.progress import ProgressCallback
    from gumbelrl.tracking.random_streams import random_state, set_random_state
    from gumbelrl.tracking.report import end_table, environment_versions
    from gumbelrl.tracking.run_callbacks import LogCallback, StopCallback, restart_environments
    from gumbelrl.tracking.run_folder import (
        RunFolder,
        RunFolderError,
        default_run_dir,
        run_stem,
        write_atomically,
    )
    from gumbelrl.tracking.seeds import derive_seed, final_evaluation_seed
    from gumbelrl.tracking.settings import TrackingSettings, WandbSettings
    from gumbelrl.tracking.stop_signals import StopSignals
    from gumbelrl.tracking.tensorboard_output import TensorBoardWriter
    from gumbelrl.tracking.trackers import Trackers
    from gumbelrl.tracking.videos import record_episode
    from gumbelrl.tracking.wandb_mode import TrackingMode, resolve_mode
    from gumbelrl.tracking.wandb_tracker import WandbTracker

_HOMES = {
    "CheckpointCallback": "checkpoints",
    "best": "checkpoints",
    "latest": "checkpoints",
    "open_checkpoint": "checkpoints",
    "previous": "checkpoints",
    "Checkpoint": "manifest",
    "reading": "manifest",
    "Evaluation": "evaluation",
    "EvaluationCallback": "evaluation",
    "Reached": "evaluation",
    "evaluate": "evaluation",
    "log_evaluation": "evaluation",
    "JsonlWriter": "metrics",
    "LogCallback": "run_callbacks",
    "restart_environments": "run_callbacks",
    "StopCallback": "run_callbacks",
    "Beat": "heartbeat",
    "Heartbeat": "heartbeat",
    "read_heartbeat": "heartbeat",
    "run_stem": "run_folder",
    "StopSignals": "stop_signals",
    "random_state": "random_streams",
    "set_random_state": "random_streams",
    "brief": "error_text",
    "first_line": "error_text",
    "cut_metrics": "metrics",
    "read_metrics": "metrics",
    "ProgressCallback": "progress",
    "end_table": "report",
    "environment_versions": "report",
    "git_commit": "git_source",
    "RunFolder": "run_folder",
    "RunFolderError": "run_folder",
    "default_run_dir": "run_folder",
    "write_atomically": "run_folder",
    "derive_seed": "seeds",
    "final_evaluation_seed": "seeds",
    "BackgroundWriter": "background",
    "CsvWriter": "csv_output",
    "EpisodesWriter": "metrics",
    "TensorBoardWriter": "tensorboard_output",
    "Trackers": "trackers",
    "TrackingMode": "wandb_mode",
    "TrackingSettings": "settings",
    "WandbSettings": "settings",
    "WandbTracker": "wandb_tracker",
    "record_episode": "videos",
    "resolve_mode": "wandb_mode",
}

__all__ = [
    "BackgroundWriter",
    "Beat",
    "Checkpoint",
    "CheckpointCallback",
    "CsvWriter",
    "EpisodesWriter",
    "Evaluation",
    "EvaluationCallback",
    "Heartbeat",
    "JsonlWriter",
    "LogCallback",
    "ProgressCallback",
    "Reached",
    "RunFolder",
    "RunFolderError",
    "StopCallback",
    "StopSignals",
    "TensorBoardWriter",
    "Trackers",
    "TrackingMode",
    "TrackingSettings",
    "WandbSettings",
    "WandbTracker",
    "best",
    "brief",
    "cut_metrics",
    "default_run_dir",
    "derive_seed",
    "end_table",
    "environment_versions",
    "evaluate",
    "final_evaluation_seed",
    "first_line",
    "git_commit",
    "latest",
    "log_evaluation",
    "open_checkpoint",
    "previous",
    "random_state",
    "read_heartbeat",
    "read_metrics",
    "reading",
    "record_episode",
    "resolve_mode",
    "restart_environments",
    "run_stem",
    "set_random_state",
    "write_atomically",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
