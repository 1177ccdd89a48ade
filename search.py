"""Search for settings: python search.py experiment=cartpole

Optuna suggests settings from a space and stops hopeless trials early; a trial is an ordinary run of
train.py for each seed. A search that was stopped goes on where it was: give the same command again.

    experiment=NAME     of configs/search, or the path of a .yaml file
    out=FOLDER          of the search; null is searches/NAME
    launcher=local      processes on this machine; ray is a Ray cluster (RAY_ADDRESS, or one here)
    workers=auto        trials at once: as many as cores, on Ray as its CPUs
    trials=null         how many in all; null is the experiment's
    seeds=null          of each trial: 3 is 0 to 2, [3,4] these; null is the experiment's
    budget=null         environment steps of each run, in place of the experiment's
    pruner=null         median, hyperband or none; null is the experiment's
    sampler_seed=null   of the suggestions; null is the experiment's
    num_gpus=null       of each run, on Ray; null is the experiment's
    dry_run=false       print the space and the first suggestions, run nothing

Any other key is an override of train.py for every run:

    python search.py experiment=cartpole env=acrobot out=searches/acrobot
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gumbelrl.comparison.launchers import Launcher
    from gumbelrl.comparison.search_loop import SearchLoop
    from gumbelrl.comparison.search_settings import SearchSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 no trial came to its end, 2 bad input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or any(argument in ("-h", "--help", "help") for argument in arguments):
        print(__doc__)
        return 0
    try:
        from gumbelrl.comparison.search_settings import read_arguments
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import RunFolderError, first_line
        from gumbelrl.train import see_working_folder

        try:
            see_working_folder({})  # for agents and environments of the user's
            settings = read_arguments(arguments)
            command = shlex.join([*program(), *arguments])
            return Search(settings, command).execute()
        except (ConfigError, RunFolderError) as error:
            return _refuse(first_line(error))
    except KeyboardInterrupt:
        return _refuse("interrupted before the search began", 130)


def _refuse(message: str, exit_code: int = 2) -> int:
    print(f"search.py: {message}", file=sys.stderr)
    return exit_code


def program() -> list[str]:
    """How the user starts this: the installed script, or the file of a checkout."""
    if Path(sys.argv[0]).name.startswith("gumbelrl-"):
        return ["gumbelrl-search"]
    return ["python", "search.py"]


class Search:
    """One search: ask, run, watch, tell, write down.

    Args:
        settings: of the command line.
        command: the command line itself, which goes on with the search.
    """

    def __init__(self, settings: SearchSettings, command: str) -> None:
        from gumbelrl.comparison.grid import Grid
        from gumbelrl.comparison.search_settings import plan

        self.settings = settings
        self.command = command
        self.plan = plan(settings, command)
        question = self.plan.stated.question.strip()
        self.grid = Grid(self.plan.name, question, command, [])

    def execute(self) -> int:
        """Run to the end; returns the exit code. Bad input raises before a run is begun."""
        from gumbelrl.comparison.command_line import locked, make_out
        from gumbelrl.comparison.search_loop import SearchLoop
        from gumbelrl.comparison.trials import STUDY, Trials, import_optuna
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import StopSignals

        import_optuna()
        if self.settings.dry_run:
            return self._print_first()
        out = self.plan.out
        make_out(out, STUDY, "search")
        try:
            with locked(out, "search.py", "search"), StopSignals() as signals:
                trials = Trials(self.plan, out / STUDY)
                loop = SearchLoop(self.plan, trials, self.grid)
                launcher = self._make_launcher()
                signals.defer()  # the loop meets them
                try:
                    loop.run(launcher, signals, self._say_what_there_is)
                finally:
                    launcher.close()
                return self._end(loop, interrupted=launcher.stopped)
        except OSError as error:
            raise ConfigError(
                f"cannot write {out / STUDY}: {error.strerror or error}; the runs keep their last "
                f"checkpoints. To go on when it can be written: {self.command}"
            ) from error

    def _say_what_there_is(self, say: Any) -> None:
        plan, stated = self.plan, self.plan.stated
        seeds = f" × {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
        steps = stated.trials * len(plan.seeds) * stated.total_steps
        say(self.grid.question)
        say(f"{stated.trials} trials{seeds}, {steps:,} environment steps at most")
        for parameter in plan.space:
            say(f"  {parameter}")
        size = math.prod(parameter.size() for parameter in plan.space)
        if size < stated.trials:
            say(
                f"the space has {size} settings, fewer than there are trials: some are tried "
                "again; a sweep of compare.py tries each once"
            )
        say(f"pruner: {stated.pruner}{self._doubt()}")
        say(f"folder: {plan.out}")

    def _doubt(self) -> str:
        """What the user should know of a pruner that cannot prune."""
        plan = self.plan
        if plan.stated.pruner != "none" and plan.first_rung >= plan.rungs * len(plan.seeds):
            every = plan.config["eval_every"]
            return (
                f", but no evaluation comes before the end (eval_every={every:,}): none is pruned"
            )
        return ""

    def _print_first(self) -> int:
        """The suggestions that depend on nothing that is learned, as the search would make them."""
        from gumbelrl.comparison.search_settings import run_overrides
        from gumbelrl.comparison.trials import Trials

        self._say_what_there_is(print)
        trials, stated = Trials(self.plan), self.plan.stated
        for _ in range(min(stated.trials, stated.startup_trials)):
            trial = trials.ask()
            overrides = run_overrides(stated, trial.settings, self.plan.seeds[0])
            print(f"{trial}: train.py {shlex.join(overrides)}")
        return 0

    def _make_launcher(self) -> Launcher[Any]:
        from gumbelrl.comparison.launchers import make_launcher, workers_for

        name, given = self.settings.launcher, self.settings.workers
        workers = None if given == "auto" else given
        if name == "local" and workers is None:
            workers = workers_for([self.plan.config])
        return make_launcher(name, [], workers, self.plan.stated.num_gpus)

    def _end(self, loop: SearchLoop, interrupted: bool) -> int:
        """Print what came of it and write best.yaml; returns the exit code."""
        from gumbelrl.comparison.search_results import print_end, write_best
        from gumbelrl.train import programs

        trials, best = loop.trials.all(), loop.trials.best()
        unfinished = len(trials) < self.plan.stated.trials or bool(loop.active)
        if best is not None:
            try:
                write_best(self.plan, best)
            except OSError as error:
                print(f"cannot write best.yaml: {error.strerror}")
        print_end(self.plan, trials, best, programs()[0])
        if best is not None:
            print(f"report: {shlex.join([*self._compare(), f'runs={self.plan.out}'])}")
        if unfinished and not interrupted:
            print(f"{loop.failures} trials failed and none came to its end: no more were begun")
        if unfinished:
            print(f"to go on: {self.command}")
        if interrupted and unfinished:
            return 130
        return 1 if best is None else 0

    @staticmethod
    def _compare() -> list[str]:
        return [word.replace("search", "compare") for word in program()]


if __name__ == "__main__":
    sys.exit(main())
