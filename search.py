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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gumbelrl.comparison.grid import Point
    from gumbelrl.comparison.launchers import Launcher
    from gumbelrl.comparison.records import RunRecord
    from gumbelrl.comparison.run_job import Outcome
    from gumbelrl.comparison.search_settings import SearchSettings
    from gumbelrl.comparison.trials import Trial
    from gumbelrl.tracking import StopSignals

_SECONDS_PER_LOOK = 0.5
_HOPELESS = 5  # trials that failed, before any other came to something


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

        try:
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


@dataclass
class Active:
    """A trial at work: its seeds one after the other.

    Args:
        trial: what is tried.
        scores: of its finished runs, in the order of the seeds.
        point: the run that is queued or at work.
        seen: size of its metrics.jsonl when it was last read.
        last_rung: the last evaluation that was reported, counted over all its runs.
        pruned: why it is stopped early.
    """

    trial: Trial
    scores: list[float] = field(default_factory=list)
    point: Point | None = None
    seen: int = 0
    last_rung: int = 0
    pruned: str | None = None


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
        self.plan = plan(settings, command)
        stated = self.plan.stated
        # The same manifest as a grid's: it is for compare.py's report and for the display. What a
        # search goes on from is the study.
        self.grid = Grid(self.plan.name, stated.question.strip(), command, [])
        self.active: dict[int, Active] = {}
        self.failures = 0

    def execute(self) -> int:
        """Run to the end; returns the exit code. Bad input raises before a run is begun."""
        from gumbelrl.comparison.command_line import locked, make_out
        from gumbelrl.comparison.trials import STUDY, Trials, import_optuna
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import StopSignals

        import_optuna()
        if self.settings.dry_run:
            return self._print_first()
        out = self.plan.out
        make_out(out, STUDY, "search")
        with locked(out, "search.py", "search"), StopSignals() as signals:
            self.trials = Trials(self.plan, out / STUDY)
            self._see_what_is_there()
            launcher = self._make_launcher()
            # From here on a signal is looked for between two writes to the study, not within one.
            signals.defer()
            try:
                self._run(launcher, signals)
            except OSError as error:
                raise ConfigError(
                    f"cannot write {out / STUDY}: {error.strerror or error}; the runs keep their "
                    f"last checkpoints. To go on when it can be written: {self.grid.command}"
                ) from error
            finally:
                launcher.close()
            return self._end(interrupted=launcher.stopped)

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

    def _see_what_is_there(self) -> None:
        """Points of the runs that earlier processes made, and the trials that go on."""
        from gumbelrl.comparison.grid import find_difference
        from gumbelrl.configs.compose import ConfigError

        going_on = self.trials.going_on()
        for trial in self.trials.all():
            for position in range(len(self.plan.seeds)):
                point = self._point(trial, position)
                if not self._run_of(point).exists():
                    break
                self._list(point, trial)
        for trial in going_on:
            self.active[trial.number] = Active(trial, last_rung=trial.last_rung)
            config = self._config(trial)
            for point in (p for p in self.grid.points if p.agent == str(trial)):
                difference = find_difference(self._run_of(point), config, point.seed)
                if difference is not None:
                    raise ConfigError(
                        f"{self._run_of(point)} was made with other settings ({difference}); "
                        "remove it to make it again, or give another out=FOLDER"
                    )

    def _list(self, point: Point, trial: Trial) -> None:
        from gumbelrl.tracking import RunFolder

        states: Any = {"running": "pending"}
        finished = RunFolder(self._run_of(point)).is_complete()
        point.status = "finished" if finished else states.get(trial.state, trial.state)
        point.reason = None if finished else trial.reason
        self.grid.points.append(point)

    def _run_of(self, point: Point) -> Path:
        return self.plan.out / point.run

    def _config(self, trial: Trial) -> dict[str, Any]:
        from gumbelrl.comparison.search_settings import run_overrides
        from gumbelrl.configs.build import env_for_agent
        from gumbelrl.configs.compose import compose

        config = compose(run_overrides(self.plan.stated, trial.settings, self.plan.seeds[0]))
        config["env"] = env_for_agent(config["env"], config["agent"])
        return config

    def _point(self, trial: Trial, position: int) -> Point:
        from gumbelrl.comparison.grid import Point
        from gumbelrl.comparison.search_results import run_folder
        from gumbelrl.comparison.search_settings import run_overrides

        stated, seed = self.plan.stated, self.plan.seeds[position]
        return Point(
            agent=str(trial),
            env=str(self.plan.config["env"]["id"]),
            seed=seed,
            settings={},
            overrides=run_overrides(stated, trial.settings, seed),
            run=f"runs/{run_folder(trial.number, self.plan, position)}",
            threshold=stated.threshold,
            total_steps=stated.total_steps,
        )

    def _make_launcher(self) -> Launcher[Any]:
        from gumbelrl.comparison.launchers import make_launcher, workers_for

        name, given = self.settings.launcher, self.settings.workers
        workers = None if given == "auto" else given
        if name == "local" and workers is None:
            workers = workers_for([self.plan.config])
        return make_launcher(name, [], workers, self.plan.stated.num_gpus)

    def _run(self, launcher: Launcher[Any], signals: StopSignals) -> None:
        """Ask for trials and run them until there are enough, or a signal comes."""
        from gumbelrl.comparison.grid_display import GridDisplay

        with GridDisplay(self.grid, self.plan.out) as self.display:
            self._say_what_there_is(self.display.say)
            ended = len(self.trials) - len(self.active)
            if ended:
                self.display.say(f"{ended} trials are over already")
            for active in list(self.active.values()):
                self._go_on(active, launcher)
            self._fill(launcher)
            while self.active and not launcher.done:
                if signals.received and not launcher.stopped:
                    self.display.say("stopping: the runs keep their last checkpoints")
                    launcher.stop()
                self._note(launcher)
                self._fill(launcher)

    def _fill(self, launcher: Launcher[Any]) -> None:
        """Begin new trials where there is room, each as late as it can be: then it knows most."""
        hopeless = self.failures >= _HOPELESS and self.trials.best() is None
        while not launcher.stopped and not hopeless and len(self.active) < launcher.capacity():
            if len(self.trials) >= self.plan.stated.trials:
                return
            trial = self.trials.ask()
            self.active[trial.number] = Active(trial)
            self._go_on(self.active[trial.number], launcher)

    def _note(self, launcher: Launcher[Any]) -> None:
        """What has come of the runs since the last look."""
        begun, ended = launcher.poll(_SECONDS_PER_LOOK)
        points = {point.name: point for point in self.grid.points}
        for job in begun:
            points[job.name].status = "running"
            self.display.changed(points[job.name])
        of_run = {a.point.name: a for a in self.active.values() if a.point is not None}
        for job, outcome in ended:
            self._ended(of_run[job.name], outcome, launcher)
        for active in list(self.active.values()):
            self._watch(active, launcher)
        if begun or ended:
            self._write_down()
        self.display.refresh()

    def _go_on(self, active: Active, launcher: Launcher[Any]) -> None:
        """Queue the next run of a trial, or end it where there is none."""
        from gumbelrl.tracking import RunFolder

        while len(active.scores) < len(self.plan.seeds):
            active.point, active.seen = self._next_point(active), 0
            if not RunFolder(self._run_of(active.point)).is_complete():
                self._queue(active, launcher)
                return
            active.point.status, active.point.reason = "finished", None
            if not self._score(active):
                return
            if active.pruned is not None and len(active.scores) < len(self.plan.seeds):
                self._tell(active, "pruned", active.pruned)
                return
        self._tell(active, "finished")

    def _next_point(self, active: Active) -> Point:
        point = self._point(active.trial, len(active.scores))
        for known in self.grid.points:
            if known.run == point.run:
                return known
        self.grid.points.append(point)
        return point

    def _queue(self, active: Active, launcher: Launcher[Any]) -> None:
        from gumbelrl.comparison.run_job import Job, foreign_modules
        from gumbelrl.configs.compose import ConfigError
        from gumbelrl.tracking import first_line

        point = active.point
        assert point is not None
        try:
            config = self._config(active.trial)
        except ConfigError as error:  # two values that do not go together
            self._tell(active, "failed", first_line(error))
            return
        launcher.add(
            Job(
                name=point.name,
                overrides=tuple(point.overrides),
                run=self._run_of(point).absolute(),
                log=(self.plan.out / "logs" / f"{point.name}.log").absolute(),
                total_steps=point.total_steps,
                trust=foreign_modules(config),
                cwd=Path.cwd(),
            )
        )

    def _ended(self, active: Active, outcome: Outcome, launcher: Launcher[Any]) -> None:
        point = active.point
        assert point is not None
        if outcome.status == "finished":
            self._go_on(active, launcher)
        elif outcome.status == "pending" and active.pruned is not None:
            self._tell(active, "pruned", active.pruned)
        elif outcome.status == "pending":
            point.status = "pending"
            self.display.changed(point)
        else:
            self._tell(active, "failed", outcome.reason)

    def _watch(self, active: Active, launcher: Launcher[Any]) -> None:
        """Report the evaluations that a run has made since; stop it if the trial is pruned."""
        from gumbelrl.comparison.records import read_run
        from gumbelrl.tracking import RunFolder, RunFolderError

        if active.point is None or active.point.status != "running" or active.pruned:
            return
        run = RunFolder(self._run_of(active.point))
        try:
            size = run.metrics_path.stat().st_size
            if size == active.seen:
                return
            record = read_run(run.path)
        except (OSError, RunFolderError):
            return  # its files appear one by one
        active.seen = size
        self._report(active, record)
        if active.pruned is not None:
            launcher.stop_job(active.point.name)

    def _report(self, active: Active, record: RunRecord) -> None:
        """Tell Optuna of the evaluations it does not know, each as the k-th of the trial.

        The value at the k-th is what the trial would be worth if its run ended there. They are
        counted by eval_every, not by steps: agents that step many environments together evaluate a
        little later than others, and are compared with them all the same.
        """
        plan, number = self.plan, active.trial.number
        for count, steps in enumerate(record.steps, start=1):
            at_the_end = steps >= plan.stated.total_steps
            rung = plan.rungs if at_the_end else int(steps // plan.config["eval_every"])
            rung += len(active.scores) * plan.rungs
            if rung <= active.last_rung:
                continue
            worth = [*active.scores, self._worth(record.returns[:count])]
            active.last_rung = rung
            prune = self.trials.report(number, rung, sum(worth) / len(worth))
            if prune and rung < plan.rungs * len(plan.seeds):
                active.pruned = f"at {steps:,.0f} steps of seed {record.seed}"
                return

    def _worth(self, returns: Any) -> float:
        """Of a run with these evaluations."""
        final = self.plan.stated.objective == "final"
        return float(returns[-1] if final else returns.mean())

    def _score(self, active: Active) -> bool:
        """Take a finished run's score; False, and the trial has failed, where there is none."""
        from gumbelrl.comparison.records import read_run
        from gumbelrl.tracking import RunFolderError, first_line

        assert active.point is not None
        try:
            record = read_run(self._run_of(active.point))
        except RunFolderError as error:
            self._tell(active, "failed", first_line(error))
            return False
        if len(record.returns) == 0:
            self._tell(active, "failed", "its run holds no evaluation with a finite return")
            return False
        if active.pruned is None:
            self._report(active, record)
        active.scores.append(self._worth(record.returns))
        return True

    def _tell(self, active: Active, state: str, reason: str | None = None) -> None:
        """The end of a trial: to Optuna, to the user, to the files."""
        from gumbelrl.comparison.search_results import brief_value

        number, point = active.trial.number, active.point
        del self.active[number]
        if state == "finished":
            self.trials.finish(number, active.scores)
        elif state == "pruned":
            self.trials.prune(number, active.scores, reason or "")
        else:
            self.trials.fail(number, active.scores, reason or "it failed")
            self.failures += 1
        if point is not None and point.status != "finished":
            point.status, point.reason = state, reason  # type: ignore[assignment]
        trial, best = self.trials.of(number), self.trials.best()
        parts = [f"{trial} {state}" + (f" {reason}" if state == "pruned" else "")]
        parts += [] if trial.value is None else [f"{trial.value:.4g}"]
        parts += [f"{key}={brief_value(value)}" for key, value in trial.settings.items()]
        parts += [] if state != "failed" else [str(reason)]
        parts += [] if best is None else [f"best {best.value:.4g} ({best})"]
        over = len(self.trials) - len(self.active)
        self.display.say(" · ".join([*parts, f"{over} of {self.plan.stated.trials}"]))
        self._write_down()

    def _write_down(self) -> None:
        """A full disk does not stop the runs: what they came to stands in their own folders."""
        from gumbelrl.comparison.search_results import ranked, write_trials

        trials = self.trials.all()
        # The report compares the first with the others.
        places = {str(trial): place for place, trial in enumerate(ranked(trials))}
        self.grid.points.sort(key=lambda point: places[point.agent])
        try:
            self.grid.write(self.plan.out)
            write_trials(self.plan, trials)
        except OSError as error:
            why = error.strerror or str(error)
            self.display.say(f"cannot write in {self.plan.out}: {why}; the search goes on")

    def _end(self, interrupted: bool) -> int:
        """Print what came of it and write best.yaml; returns the exit code."""
        from gumbelrl.comparison.search_results import print_end, write_best
        from gumbelrl.train import programs

        trials, best = self.trials.all(), self.trials.best()
        unfinished = len(trials) < self.plan.stated.trials or bool(self.active)
        if best is not None:
            try:
                write_best(self.plan, best)
            except OSError as error:
                print(f"cannot write best.yaml: {error.strerror}")
        print_end(self.plan, trials, best, programs()[0])
        if best is not None:
            print(f"report: {shlex.join([*self._compare(), f'runs={self.plan.out}'])}")
        if unfinished and not interrupted:
            print(f"{self.failures} trials failed and none came to its end: no more were begun")
        if unfinished:
            print(f"to go on: {self.grid.command}")
        if interrupted and unfinished:
            return 130
        return 1 if best is None else 0

    @staticmethod
    def _compare() -> list[str]:
        return [word.replace("search", "compare") for word in program()]


if __name__ == "__main__":
    sys.exit(main())
