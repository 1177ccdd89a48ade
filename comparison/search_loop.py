"""The life of a search: trials are asked for, run, watched, told to the study, written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gumbelrl.comparison.grid import Grid, Point, find_difference
from gumbelrl.comparison.grid_display import GridDisplay
from gumbelrl.comparison.launchers import Launcher
from gumbelrl.comparison.records import RunRecord, read_run
from gumbelrl.comparison.run_job import Job, Outcome, foreign_modules
from gumbelrl.comparison.search_results import brief_value, ranked, run_folder, write_trials
from gumbelrl.comparison.search_settings import Plan, run_overrides
from gumbelrl.comparison.trials import Trial, Trials
from gumbelrl.comparison.wandb_grid import group_of, names_of
from gumbelrl.configs.build import env_for_agent
from gumbelrl.configs.compose import ConfigError, compose
from gumbelrl.tracking import (
    RunFolder,
    RunFolderError,
    StopSignals,
    first_line,
    resolve_mode,
)

_SECONDS_PER_LOOK = 0.5
_HOPELESS = 5  # trials that failed, before any other came to something

Say = Callable[[Callable[[str], None]], None]


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


class SearchLoop:
    """Keeps as many trials at work as there is room for, until there are enough.

    Args:
        plan: the search.
        trials: its study.
        grid: its runs; a point for each, the best trial's first. It is for the display and for the
            report of compare.py: what a search goes on from is the study.

    Attributes:
        active: the trials at work, by number; what is left at the end goes on later.
        failures: how many trials have failed since it began.
    """

    def __init__(self, plan: Plan, trials: Trials, grid: Grid) -> None:
        self.plan = plan
        self.trials = trials
        self.grid = grid
        self.active: dict[int, Active] = {}
        self.failures = 0
        try:
            self._on_wandb = resolve_mode(plan.config["tracking"]["mode"]).mode != "disabled"
        except ValueError as error:  # of WANDB_MODE
            raise ConfigError(first_line(error)) from error
        self._see_what_is_there()

    def _see_what_is_there(self) -> None:
        """Points of the runs that earlier processes made, and the trials that go on."""
        going_on = self.trials.going_on()
        for trial in self.trials.all():
            for position in range(len(self.plan.seeds)):
                point = self._point(trial, position)
                if not self._run_of(point).exists():
                    break
                self._list(point, trial)
        for trial in going_on:
            self.active[trial.number] = Active(trial, last_rung=trial.last_rung)
            for point in (p for p in self.grid.points if p.agent == str(trial)):
                config = self._config(trial)
                difference = find_difference(self._run_of(point), config, point.seed)
                if difference is not None:
                    raise ConfigError(
                        f"{self._run_of(point)} was made with other settings ({difference}); "
                        "remove it to make it again, or give another out=FOLDER"
                    )

    def _list(self, point: Point, trial: Trial) -> None:
        states: Any = {"running": "pending"}
        finished = RunFolder(self._run_of(point)).is_complete()
        point.status = "finished" if finished else states.get(trial.state, trial.state)
        point.reason = None if finished else trial.reason
        self.grid.points.append(point)

    def _run_of(self, point: Point) -> Path:
        return self.plan.out / point.run

    def _config(self, trial: Trial) -> dict[str, Any]:
        config = compose(run_overrides(self.plan.stated, trial.settings, self.plan.seeds[0]))
        config["env"] = env_for_agent(config["env"], config["agent"])
        return config

    def _point(self, trial: Trial, position: int) -> Point:
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

    def run(self, launcher: Launcher[Any], signals: StopSignals, say_first: Say) -> None:
        """Ask for trials and run them until there are enough, or a signal comes.

        Args:
            launcher: of the runs; the caller closes it.
            signals: deferred, so that they are met here, between two writes to the study.
            say_first: what is said before the first run is begun, through what it is given.
        """
        with GridDisplay(self.grid, self.plan.out) as self.display:
            say_first(self.display.say)
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
        while not launcher.stopped and len(self.active) < launcher.capacity():
            hopeless = self.failures >= _HOPELESS and self.trials.best() is None
            if hopeless or len(self.trials) >= self.plan.stated.trials:
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
                overrides=(*self._wandb_names(point), *point.overrides),
                run=self._run_of(point).absolute(),
                log=(self.plan.out / "logs" / f"{point.name}.log").absolute(),
                total_steps=point.total_steps,
                trust=foreign_modules(config),
                cwd=Path.cwd(),
            )
        )

    def _wandb_names(self, point: Point) -> list[str]:
        """Trials share a group on W&B, where that is on."""
        if not self._on_wandb:
            return []
        given = self.plan.config["tracking"]
        group = group_of(self.plan.out, self.plan.name)
        return names_of(point, given, self.plan.name, group, job_type="trial")

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
