"""Compare agents fairly: python compare.py experiment=cartpole

A grid of agents x environments x seeds, each an ordinary run of train.py, then one report. A grid
that was stopped goes on where it was: give the same command again.

    experiment=NAME     of configs/experiment, or the path of a .yaml file
    out=FOLDER          of the grid; null is comparisons/NAME
    launcher=local      processes on this machine; ray is a Ray cluster (RAY_ADDRESS, or one here)
    workers=auto        runs at once: as many as cores, on Ray as its CPUs
    seeds=null          5 is 0 to 4, [3,4] these; null is the experiment's
    budget=null         environment steps of each run, in place of the experiment's
    agents=null         [LABEL,...] takes some of the experiment's
    envs=null           [LABEL,...] takes some of the experiment's
    num_gpus=null       of each run, on Ray; null is the experiment's
    dry_run=false       print the grid, run nothing
    runs=FOLDER         only report on the runs in a folder

Any other key is an override of train.py for every run; several values make it one axis more of the
grid:

    python compare.py experiment=cartpole device=cpu agent.learning_rate=0.001,0.003
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gumbelrl.comparison.command_line import CompareSettings
    from gumbelrl.comparison.grid import Point
    from gumbelrl.comparison.launchers import Launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 some run failed, 2 bad input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    try:
        from gumbelrl.comparison.command_line import read_arguments
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import RunFolderError, first_line
        from gumbelrl.train import see_working_folder

        try:
            see_working_folder({})  # for agents and environments of the user's
            settings = read_arguments(arguments)
            if settings.runs is not None:
                return report_on(Path(settings.runs).expanduser())
            command = shlex.join([*program(), *arguments])
            return Comparison(settings, command).execute()
        except (ConfigError, RunFolderError) as error:
            return _refuse(first_line(error))
    except KeyboardInterrupt:
        return _refuse("interrupted before the grid began", 130)


def _refuse(message: str, exit_code: int = 2) -> int:
    print(f"compare.py: {message}", file=sys.stderr)
    return exit_code


def program() -> list[str]:
    """How the user starts this: the installed script, or the file of a checkout."""
    if Path(sys.argv[0]).name.startswith("gumbelrl-"):
        return ["gumbelrl-compare"]
    return ["python", "compare.py"]


def report_on(folder: Path) -> int:
    """Write the report on a folder with runs, and say where it is; returns the exit code."""
    from gumbelrl.configs.compose import ConfigError
    from gumbelrl.tracking import first_line

    if not folder.is_dir():
        raise ConfigError(f"runs: there is no folder {folder}")
    if not any(folder.glob("*/config.yaml")) and not any(folder.glob("runs/*/config.yaml")):
        raise ConfigError(
            f"runs: {folder} holds no runs (folders with a config.yaml); give a folder that "
            "compare.py or train.py wrote, such as comparisons/NAME or runs"
        )
    try:
        from gumbelrl.comparison.report import write_report

        headline = write_report(folder)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'the report needs {error.name}: pip install "gumbelrl[compare]", then '
            f"{shlex.join([*program(), f'runs={folder}'])}"
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"no report on {folder}: {first_line(error)}") from error
    print(headline)
    print(f"report: {folder / 'report.html'}")
    return 0


class Comparison:
    """One grid: expand, run, write down, report.

    Args:
        settings: of the command line.
        command: the command line itself, which goes on with the grid.
    """

    def __init__(self, settings: CompareSettings, command: str) -> None:
        from gumbelrl.comparison.command_line import plan

        self.settings = settings
        self.grid, self.out, self.num_gpus = plan(settings, command)

    def execute(self) -> int:
        """Run to the end; returns the exit code. Bad input raises before a run is begun."""
        from gumbelrl.comparison.command_line import locked, make_out
        from gumbelrl.comparison.grid import MANIFEST, Grid, check_points, merge
        from gumbelrl.comparison.wandb_grid import WandbGrid
        from gumbelrl.tracking import StopSignals

        self.configs = check_points(self.grid.points, self.grid.points[0].settings)
        if (self.out / MANIFEST).exists():
            self.grid = merge(Grid.read(self.out), self.grid, self.out)
        self.wandb = WandbGrid(self.grid.experiment, self.out, self.configs)
        if self.settings.dry_run:
            return self._print_grid()
        make_out(self.out)
        with locked(self.out), StopSignals() as signals:
            self._see_what_is_there()
            launcher = self._make_launcher()
            try:
                interrupted = self._run(launcher)
            finally:
                launcher.close()
            signals.defer()
            return self._end(interrupted)

    def _print_grid(self) -> int:
        from rich.console import Console

        console, grid = Console(), self.grid
        for point in grid.points:
            text = f"{point.name}: train.py {shlex.join(point.overrides)}"
            if point.status == "n/a":
                text = f"{point.name}: n/a, {point.reason}"
            console.print(text, soft_wrap=True, markup=False, highlight=False)
        self._say_what_there_is(console.out)
        return 0

    def _say_what_there_is(self, say: Any) -> None:
        grid = self.grid
        sizes = {
            name: len({getattr(point, name) for point in grid.points})
            for name in ("agent", "env", "seed")
        }
        told = " × ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in sizes.items())
        swept = ", ".join(grid.points[0].settings)
        total = sum(point.total_steps for point in grid.points if point.status != "n/a")
        say(grid.question)
        say(
            f"{len(grid.points)} runs: {told}{f' × {swept}' * bool(swept)}, "
            f"{total:,} environment steps at most"
        )
        say(f"folder: {self.out}")

    def _see_what_is_there(self) -> None:
        """What each point has come to, from the run folders themselves."""
        from gumbelrl.comparison.grid import find_difference
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import RunFolder

        for point in self.grid.points:
            if point.status == "n/a":
                continue
            run = self.out / point.run
            difference = find_difference(run, self.configs[point.cell], point.seed)
            if difference is not None:
                raise ConfigError(
                    f"{run} was made with other settings ({difference}); remove it to make it "
                    "again, or give another out=FOLDER"
                )
            point.status = "finished" if RunFolder(run).is_complete() else "pending"
            point.reason = None

    def _make_launcher(self) -> Launcher[Any]:
        from gumbelrl.comparison.launchers import make_launcher, workers_for
        from gumbelrl.comparison.run_job import Job, foreign_modules

        jobs = [
            Job(
                name=point.name,
                overrides=(*self.wandb.overrides(point), *point.overrides),
                run=(self.out / point.run).absolute(),
                log=(self.out / "logs" / f"{point.name}.log").absolute(),
                total_steps=point.total_steps,
                trust=foreign_modules(self.configs[point.cell]),
                cwd=Path.cwd(),
            )
            for point in self.grid.points
            if point.status == "pending"
        ]
        name, given = self.settings.launcher, self.settings.workers
        workers = None if given == "auto" else given
        if name == "local" and workers is None:
            workers = workers_for(self.configs.values())
        return make_launcher(name, jobs, workers, self.num_gpus)

    def _run(self, launcher: Launcher[Any]) -> bool:
        """Run the jobs, and write down what becomes of them; True if it was interrupted."""
        from gumbelrl.comparison.grid_display import GridDisplay

        interrupted = False
        with GridDisplay(self.grid, self.out) as self.display:
            self._say_what_there_is(self.display.say)
            self._write_grid()
            finished = self.grid.count("finished")
            if finished:
                were = "run is" if finished == 1 else "runs are"
                self.display.say(f"{finished} {were} finished already")
            while not launcher.done:
                try:
                    self._note(launcher)
                except KeyboardInterrupt:
                    interrupted = True
                    self.display.say("stopping: the runs keep their last checkpoints")
                    launcher.stop()
        return interrupted

    def _note(self, launcher: Launcher[Any]) -> None:
        points = {point.name: point for point in self.grid.points}
        begun, ended = launcher.poll(seconds=0.5)
        for job in begun:
            points[job.name].status = "running"
            self.display.changed(points[job.name])
        for job, outcome in ended:
            point = points[job.name]
            point.status, point.reason = outcome.status, outcome.reason
            times = f"{outcome.deaths} time{'s' * (outcome.deaths != 1)}"
            self.display.changed(point, f"killed {times} and gone on" if outcome.deaths else "")
            if point.status == "n/a":
                self._not_applicable(point, launcher)
        if begun or ended:
            self._write_grid()
        self.display.refresh()

    def _write_grid(self) -> None:
        """A full disk does not stop the runs: what they came to stands in their own folders."""
        try:
            self.grid.write(self.out)
        except OSError as error:
            self.display.say(f"cannot write grid.json: {error.strerror}; the grid goes on")

    def _not_applicable(self, point: Point, launcher: Launcher[Any]) -> None:
        """What an agent cannot do on an environment it cannot do with any seed."""
        others = {
            other.name: other
            for other in self.grid.points
            if other.cell == point.cell and other.status == "pending"
        }
        launcher.drop(lambda job: job.name in others)
        for other in others.values():
            other.status, other.reason = "n/a", point.reason

    def _end(self, interrupted: bool) -> int:
        """Name what failed, write the report; returns the exit code."""
        grid = self.grid
        failed = [point for point in grid.points if point.status == "failed"]
        for cell in {point.cell: point for point in grid.points if point.status == "n/a"}.values():
            settings = "".join(f", {key}={value}" for key, value in cell.settings.items())
            print(f"n/a: {cell.agent} on {cell.env}{settings}: {cell.reason}")
        for point in failed:
            print(f"failed: {point}: {point.reason}")
            print(f"        log: {self.out / 'logs' / f'{point.name}.log'}")
        unfinished = grid.count("pending", "running")
        counts = f"{grid.count('finished')} of {len(grid.points)} runs are finished"
        if failed:
            counts += f", {len(failed)} failed"
        print(counts)
        if interrupted or failed:
            print(f"to go on: {grid.command}")
        if interrupted and grid.count("finished"):
            print(f"report so far: {shlex.join([*program(), f'runs={self.out}'])}")
        if interrupted and unfinished:
            return 130
        if grid.count("finished"):
            report_on(self.out)
            for line in self.wandb.summarise(grid):
                print(line)
        return 1 if failed or not grid.count("finished") else 0


if __name__ == "__main__":
    sys.exit(main())
