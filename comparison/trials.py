"""The trials of a search: Optuna suggests them and says which to prune; a file keeps them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gumbelrl.comparison.search_settings import Plan
from gumbelrl.configs.compose import ConfigError
from gumbelrl.tracking import derive_seed, first_line

STUDY = "study.journal"
State = Literal["running", "finished", "pruned", "failed"]
_DEFINITION = "definition"
_KEEPS_A_THIRD = 3  # of the trials, at every further rung of hyperband


@dataclass(frozen=True)
class Trial:
    """One setting of the parameters.

    Args:
        number: counted from 0.
        state: what became of it.
        settings: of train.py, by key.
        value: mean over its seeds; of a pruned one, when it was stopped; None of others.
        reason: why it failed or was pruned, one line.
        scores: of its finished runs, in the order of the seeds.
        last_rung: the last evaluation that was reported, counted over its runs; 0 before the first.
    """

    number: int
    state: State
    settings: Mapping[str, Any]
    value: float | None = None
    reason: str | None = None
    scores: Sequence[float] = field(default_factory=tuple)
    last_rung: int = 0

    @property
    def worth(self) -> float:
        """The value, or less than any."""
        return -math.inf if self.value is None else self.value

    def __str__(self) -> str:
        return f"trial {self.number}"


class Trials:
    """The study of a search; whatever ends this process, the file has all that was told.

    Optuna's journal is a file of JSON lines: each is one synced write, and nothing in it is code.
    Only one process writes it (search.py locks the folder), so what a killed one left behind, half
    a line or a lock, is cleared away here.

    A suggestion depends on the search's seed, the trial's number, the parameter's name and what was
    told before, not on the random stream of a process: a search that goes on suggests what an
    undisturbed one does, and not its first trials a second time.

    Args:
        plan: the search.
        file: of the study; None keeps it in memory.

    Raises:
        ConfigError: Optuna is not installed, or the file is damaged or of another search.
    """

    def __init__(self, plan: Plan, file: Path | None = None) -> None:
        self._optuna = import_optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self.plan = plan
        self._live: dict[int, Any] = {}  # Optuna's own objects of the running trials
        self._study = self._open(file)
        definition = self._study.user_attrs.get(_DEFINITION)
        if definition is None:
            self._study.set_user_attr(_DEFINITION, plan.definition())
        else:
            _refuse_another(definition, plan)

    def _open(self, file: Path | None) -> Any:
        optuna = self._optuna
        storage = None
        try:
            if file is not None:
                from optuna.storages import JournalStorage
                from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

                _clear_away(file)
                lock = JournalFileOpenLock(str(file))
                storage = JournalStorage(JournalFileBackend(str(file), lock))
            return optuna.create_study(
                storage=storage,
                study_name="search",
                direction="maximize",
                sampler=optuna.samplers.RandomSampler(seed=0),  # asked for nothing: see `_suggest`
                pruner=self._pruner(),
                load_if_exists=True,
            )
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {error.strerror or error}") from error
        except Exception as error:  # what Optuna makes of a line that is not its own
            raise ConfigError(
                f"{file} is damaged ({type(error).__name__}: {first_line(error)}); remove its "
                "folder, or give another out="
            ) from error

    def _pruner(self) -> Any:
        pruners, plan = self._optuna.pruners, self.plan
        most = plan.rungs * len(plan.seeds)
        if plan.stated.pruner == "median":
            return pruners.MedianPruner(
                n_startup_trials=math.ceil(plan.stated.startup_trials / 2),
                n_warmup_steps=plan.first_rung,
            )
        if plan.stated.pruner == "hyperband":
            return pruners.HyperbandPruner(
                min_resource=min(plan.first_rung, most),
                max_resource=most,
                reduction_factor=_KEEPS_A_THIRD,
            )
        return pruners.NopPruner()

    def __len__(self) -> int:
        return len(self._study.get_trials(deepcopy=False))

    def all(self) -> list[Trial]:
        """Every trial, by number."""
        return [self._trial(each) for each in self._study.get_trials(deepcopy=False)]

    def best(self) -> Trial | None:
        """The finished trial of the greatest value, the first of equals; None without any."""
        finished = [trial for trial in self.all() if trial.state == "finished"]
        return max(finished, key=lambda trial: trial.worth, default=None)

    def ask(self) -> Trial:
        """Begin a new trial."""
        live = self._study.ask()
        return self._suggest(live)

    def going_on(self) -> list[Trial]:
        """The trials that an earlier process began and did not end."""
        running = self._optuna.trial.TrialState.RUNNING
        found = self._study.get_trials(deepcopy=False, states=(running,))
        return [
            self._suggest(self._optuna.trial.Trial(self._study, each._trial_id)) for each in found
        ]

    def _suggest(self, live: Any) -> Trial:
        """All its parameters; those that it has already keep their values."""
        for parameter in self.plan.space:
            self._study.sampler = self._sampler(live.number, parameter.key)
            parameter.suggest(live)
        self._live[live.number] = live
        return self.of(live.number)

    def _sampler(self, number: int, key: str) -> Any:
        stated = self.plan.stated
        with warnings.catch_warnings():
            # `constant_liar` heeds running trials; before Optuna 5 it was experimental.
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return self._optuna.samplers.TPESampler(
                n_startup_trials=stated.startup_trials,
                constant_liar=True,
                seed=derive_seed(stated.sampler_seed, "trial", number, key),
            )

    def of(self, number: int) -> Trial:
        """The trial of that number, as it stands."""
        return self._trial(self._study.get_trials(deepcopy=False)[number])

    def report(self, number: int, rung: int, value: float) -> bool:
        """Tell how good a running trial is by now; whether it is to be pruned."""
        live = self._live[number]
        live.report(value, rung)
        return bool(live.should_prune())

    def finish(self, number: int, scores: Sequence[float]) -> None:
        """A trial came to its end."""
        self._tell(number, "COMPLETE", scores, value=sum(scores) / len(scores))

    def prune(self, number: int, scores: Sequence[float], reason: str) -> None:
        """A trial was stopped early."""
        self._tell(number, "PRUNED", scores, reason)

    def fail(self, number: int, scores: Sequence[float], reason: str) -> None:
        """A trial failed."""
        self._tell(number, "FAIL", scores, reason)

    def _tell(
        self,
        number: int,
        state: str,
        scores: Sequence[float],
        reason: str | None = None,
        value: float | None = None,
    ) -> None:
        live = self._live[number]
        live.set_user_attr("scores", list(scores))
        if reason is not None:
            live.set_user_attr("reason", reason)
        self._study.tell(live, value, state=getattr(self._optuna.trial.TrialState, state))
        del self._live[number]

    def _trial(self, frozen: Any) -> Trial:
        states = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        state: Any = states.get(frozen.state.name, "running")
        return Trial(
            number=frozen.number,
            state=state,
            settings={
                parameter.key: parameter.value_of(frozen.params[parameter.key])
                for parameter in self.plan.space
                if parameter.key in frozen.params
            },
            value=frozen.value if state in ("finished", "pruned") else None,
            reason=frozen.user_attrs.get("reason"),
            scores=tuple(frozen.user_attrs.get("scores", ())),
            last_rung=frozen.last_step or 0,
        )


def _clear_away(file: Path) -> None:
    """What a process that was killed in the middle of a write left behind."""
    file.with_name(file.name + ".lock").unlink(missing_ok=True)
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(file, "r+b") as opened:
                opened.truncate(whole)


def _refuse_another(definition: Any, plan: Plan) -> None:
    """A study is of one search: results of two cannot be mixed."""
    now = plan.definition()
    before = definition if isinstance(definition, Mapping) else {}
    for key in (key for key in [*now, *before] if before.get(key) != now.get(key)):
        raise ConfigError(
            f"{plan.out} holds another search: {key} is {before.get(key)} there, {now.get(key)} "
            "here. For this one give another out=FOLDER"
        )


def import_optuna() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            'search.py needs Optuna, which is not installed: pip install "gumbelrl[search]"'
        ) from error
    return optuna
