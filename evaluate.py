"""Evaluate a finished run: python evaluate.py run=RUN_FOLDER episodes=100

    run=FOLDER          a run folder that train.py wrote
    checkpoint=last     last, best, a name in the run such as step-000010000, or a path
    episodes=100        whole episodes, >= 1
    deterministic=true  the most likely action; false samples from the policy
    seed=null           of the environments; null repeats the run's own final evaluation
    device=cpu          cpu, cuda, cuda:1, ... or auto
    video=false         true also films an episode, into the run folder's videos/
    trust=[]            modules that the run's configuration may import, beyond gumbelrl

Prints mean, 95 % interval, standard deviation, min and max of the undiscounted returns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gumbelrl.configs.compose import EvaluateSettings
    from gumbelrl.tracking import RunFolder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    try:
        from gumbelrl.configs.compose import EvaluateSettings, given_values, parse_settings
        from gumbelrl.tracking import first_line
        from gumbelrl.train import see_working_folder

        try:
            see_working_folder(given_values(arguments))
            print_evaluation(parse_settings(arguments, EvaluateSettings))
        except (ValueError, FileNotFoundError) as error:  # ConfigError and its like among them
            print(f"evaluate.py: {first_line(error)}", file=sys.stderr)
            return 2
    except KeyboardInterrupt:
        print("evaluate.py: interrupted", file=sys.stderr)
        return 130
    return 0


def print_evaluation(settings: EvaluateSettings) -> None:
    """Load the run's agent, play the episodes, print the table."""
    import torch
    from gumbelrl.configs.build import (
        agent_class,
        env_factory,
        evaluating,
        load_normalization,
    )
    from gumbelrl.configs.compose import ConfigError, check_config, check_trusted
    from gumbelrl.configs.devices import select_device
    from gumbelrl.tracking import (
        RunFolder,
        best,
        evaluate,
        latest,
        open_checkpoint,
        record_episode,
    )
    from gumbelrl.tracking.manifest import MANIFEST
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    folder = RunFolder.open(settings.run)
    stored = folder.read_config()
    check_trusted(stored, settings.trust)
    try:
        config = check_config(stored)
    except ConfigError as error:
        raise ConfigError(f"{folder.config_path}: {error}") from error
    torch.set_num_threads(config["threads"])
    finders = {"last": latest, "best": best}
    if settings.checkpoint in finders:
        path = finders[settings.checkpoint](folder.checkpoints)
    else:
        named = folder.checkpoints / settings.checkpoint
        path = named if named.is_dir() else Path(settings.checkpoint)
    if path is None or not any((path / name).is_file() for name in ("agent.zip", MANIFEST)):
        there = [
            path.name for path in (latest(folder.checkpoints), best(folder.checkpoints)) if path
        ]
        raise ConfigError(
            f"no checkpoint {settings.checkpoint!r} in {folder.path}, which has "
            f"{', '.join(there) or 'none'}; give checkpoint=last, checkpoint=best (there from the "
            "first evaluation in training on), a name in its checkpoints, or the path of a folder "
            "with agent.zip"
        )
    device = select_device(settings.device)
    checkpoint = open_checkpoint(path, evaluate_another, replay=False)
    with checkpoint.reading("agent.zip") as file:
        agent = agent_class(config["agent"]).load(file, device=device)
    statistics = load_normalization(config["env"], checkpoint)
    seed = run_seed(folder, config["seed"]) if settings.seed is None else settings.seed
    film = None
    if settings.video:
        video = folder.videos / f"{path.name}-seed{seed}.mp4"
        drawing = env_factory({**config["env"], "render_mode": "rgb_array"})
        total, length = record_episode(
            agent,
            evaluating(drawing, lambda: statistics),
            video,
            seed,
            deterministic=settings.deterministic,
        )
        film = f"{video} (return {total:.2f}, {length} steps)"
    result = evaluate(
        agent,
        evaluating(env_factory(config["env"]), lambda: statistics),
        settings.episodes,
        seed,
        deterministic=settings.deterministic,
    )
    low, high = result.interval
    kind = "deterministic" if settings.deterministic else "sampled"
    table = Table(title=Text(f"{path}"), show_header=False, title_justify="left")
    table.add_row("episodes", f"{result.episodes}, {kind} actions, seed {seed}")
    table.add_row("mean return", f"{result.mean:.2f}")
    table.add_row("95 % interval", f"{low:.2f} to {high:.2f}")
    table.add_row("standard deviation", f"{result.std:.2f}")
    table.add_row("min, max", f"{result.min:.2f}, {result.max:.2f}")
    table.add_row("mean length", f"{result.length_mean:.1f} steps")
    if film:
        table.add_row("video", Text(film, overflow="fold"))
    Console().print(table)


def evaluate_another(checkpoint: Path) -> str:
    """What to do about a checkpoint that is damaged."""
    from gumbelrl.tracking import previous

    earlier = previous(checkpoint)
    if earlier is None:
        return "there is no earlier checkpoint that is whole"
    return f"take checkpoint={earlier.name}"


def run_seed(folder: RunFolder, seed: int) -> int:
    """The seed of the evaluation in the run's summary; without one, of what it would have been."""
    from gumbelrl.tracking import RunFolderError, final_evaluation_seed

    try:
        return int(folder.read_summary()["eval"]["seed"])
    except (RunFolderError, KeyError, TypeError):
        return final_evaluation_seed(seed)


if __name__ == "__main__":
    sys.exit(main())
