"""Temperature (or a mixing weight) as a function of training progress p in [0, 1].

Progress is the only state, so a resumed run continues exactly where it stopped.

    schedule = make_schedule({"schedule": "exponential", "start": 2.0, "end": 0.5, "fraction": 0.8})
    schedule(0.0), schedule(0.4), schedule(1.0)      # 2.0, 1.0, 0.5
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from gumbelrl.gumbel.choices import fraction as check_fraction
from gumbelrl.gumbel.choices import is_number, positive, unknown_name


class Schedule:
    """A value as a function of progress. Subclasses are frozen dataclasses: settings, no state."""

    def __call__(self, p: float) -> float:
        """Value at progress p; p outside [0, 1] is clamped, so training past its end is safe."""
        raise NotImplementedError


def _to_floats(schedule: Schedule) -> None:
    """NumPy's numbers become floats: times a tensor they would give an array."""
    for key, value in list(vars(schedule).items()):
        if is_number(value):
            object.__setattr__(schedule, key, float(value))


@dataclass(frozen=True)
class Constant(Schedule):
    """τ(p) = value."""

    value: float

    def __post_init__(self) -> None:
        _to_floats(self)

    def __call__(self, p: float) -> float:
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From `start` to `end` over the first `fraction` of training, then `end`."""

    start: float
    end: float
    fraction: float = 1.0

    def __post_init__(self) -> None:
        _to_floats(self)
        check_fraction("fraction of the schedule", self.fraction, zero=False)

    def done(self, p: float) -> float:
        """Share of the ramp that lies behind progress p, in [0, 1]."""
        return min(max(p / self.fraction, 0.0), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """τ(s) = start + s (end − start), s the share of the ramp that is done."""

    def __call__(self, p: float) -> float:
        s = self.done(p)
        return (1.0 - s) * self.start + s * self.end


@dataclass(frozen=True)
class Exponential(_Ramp):
    """τ(s) = start (end / start)^s: a constant rate of decay down to the floor `end`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("start of an exponential schedule", self.start)
        positive("end of an exponential schedule", self.end)

    def __call__(self, p: float) -> float:
        s = self.done(p)
        return self.end if s == 1.0 else self.start * (self.end / self.start) ** s


@dataclass(frozen=True)
class Cosine(_Ramp):
    """τ(s) = end + (start − end)(1 + cos πs)/2: flat at both ends."""

    def __call__(self, p: float) -> float:
        s = self.done(p)
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * s))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "exponential": Exponential,
    "cosine": Cosine,
}


def make_schedule(spec: Any, name: str = "temperature", *, unit: bool = False) -> Schedule:
    """Turn a number, a Schedule or a mapping such as
    `{schedule: linear, start: 2, end: 0.5, fraction: 0.8}` into a Schedule.

    Args:
        spec: what the user wrote.
        name: of the setting, for the error.
        unit: values must lie in [0, 1] (a mixing weight); otherwise they must be > 0.

    Raises:
        ValueError: anything else, a value out of range, NaN or inf, an unknown schedule or key.
    """
    if isinstance(spec, Schedule):
        schedule = spec
    elif is_number(spec):
        schedule = Constant(spec)
    elif isinstance(spec, Mapping):
        schedule = _from_mapping(spec, name)
    else:
        raise ValueError(
            f"{name} must be a number {'in [0, 1]' if unit else '> 0'}, a Schedule, or a mapping "
            "such as {'schedule': 'linear', 'start': 1, 'end': 0.5, 'fraction': 0.8}; "
            f"got {spec!r}"
        )
    check = check_fraction if unit else positive
    for part in ("value", "start", "end"):
        if hasattr(schedule, part):
            check(name if part == "value" else f"{part} of {name}", getattr(schedule, part))
    return schedule


def _from_mapping(spec: Mapping[Any, Any], name: str) -> Schedule:
    given = {str(key): value for key, value in spec.items()}
    if "schedule" not in given and "value" not in given:
        raise ValueError(
            f"the mapping for {name} lacks the key 'schedule', one of "
            f"{', '.join(sorted(SCHEDULES))}; got {dict(spec)!r}"
        )
    kind = given.pop("schedule", "constant")
    if not isinstance(kind, str) or kind not in SCHEDULES:
        raise unknown_name(f"schedule of {name}:", kind, SCHEDULES)
    cls = SCHEDULES[kind]
    keys = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in given:
        if key not in keys:
            raise unknown_name(f"key of schedule {kind!r} of {name}:", key, keys)
    missing = [key for key in keys if key != "fraction" and key not in given]
    if missing:
        raise ValueError(
            f"schedule {kind!r} of {name} needs {', '.join(missing)}; got {dict(spec)!r}"
        )
    try:
        return cls(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
