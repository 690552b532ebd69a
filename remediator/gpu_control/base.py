"""The contract of a GPU control: one knob that limits the power a card draws, in whole steps.

Which knob that is, and what its integers count, the state says: milliwatts of a power limit, as the
NVIDIA driver counts it, or hertz of a Jetson's highest GPU clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from remediator.errors import ControlError

ROUNDING = 500
"""Values this close are one: half a watt, or half a kilohertz. Drivers round."""


@dataclass(frozen=True)
class Knob:
    """A knob: its name in a lease, and how a person says it and its values."""

    name: str
    noun: str
    unit: str
    per_unit: int

    def say(self, value: int) -> str:
        """The value with its unit, like `320 W`."""
        return f"{value / self.per_unit:.7g} {self.unit}"


POWER_LIMIT = Knob("power_limit", "power limit", "W", 1000)
MAX_FREQUENCY = Knob("gpu_max_frequency", "highest GPU clock", "MHz", 1_000_000)
# In thousandths of the 255 steps, so that the rounding of the others is none of a step here.
FAN = Knob("fan", "fan speed", "of 255", 1000)
_KNOBS = {knob.name: knob for knob in (POWER_LIMIT, MAX_FREQUENCY, FAN)}


def knob_named(name: str) -> Knob:
    """The knob that a lease names."""
    return _KNOBS[name]


# They turn the same knobs of the same cards, so one can undo what another has done.
_REAL = frozenset(("nvml", "nvidia-smi", "helper"))


def reach_the_same(control: str, other: str) -> bool:
    """Whether two controls, by name, write to the same cards."""
    return control == other or {control, other} <= _REAL


@dataclass(frozen=True)
class PowerState:
    """Where a card's knob stands and between what it may stand: milliwatts of its power limit."""

    knob: ClassVar[Knob] = POWER_LIMIT

    limit: int
    default: int
    minimum: int
    maximum: int

    def at_most(self, value: int) -> int:
        """The highest value that can be set and is not above `value`, or else the lowest."""
        return max(self.minimum, value)


@dataclass(frozen=True)
class FrequencyState(PowerState):
    """The same of a Jetson's GPU: hertz of its highest clock, which has only a few steps."""

    knob: ClassVar[Knob] = MAX_FREQUENCY

    steps: tuple[int, ...] = ()

    def at_most(self, value: int) -> int:
        """The highest step that is not above `value`, or else the lowest."""
        return max((step for step in self.steps if step <= value), default=self.minimum)


class GpuControl(Protocol):
    """Reads and writes one knob of one card, named by uuid; never by index."""

    name: str

    def power(self, uuid: str) -> PowerState:
        """Where the card's knob stands.

        Raises:
            ControlError: the card or the driver did not answer.
        """

    def set_power_limit(self, uuid: str, value: int, /) -> None:
        """Turn the knob, in its own unit; the caller reads it back.

        Raises:
            ControlError: the driver refused; nothing was changed.
            OutcomeUnknown: it is not known whether the write took effect.
        """

    def describe_set_power_limit(self, uuid: str, value: int, /) -> str:
        """What `set_power_limit` would do, for `plan`; does nothing."""


class NoControl:
    """No writing at all: every GPU action is refused."""

    name = "none"

    def power(self, uuid: str) -> PowerState:
        """Always refuses."""
        raise ControlError(f"gpus.control is none: nothing may be read or written on {uuid}")

    def set_power_limit(self, uuid: str, milliwatts: int) -> None:
        """Always refuses."""
        raise ControlError(f"gpus.control is none: {milliwatts} mW is not written to {uuid}")

    def describe_set_power_limit(self, uuid: str, milliwatts: int) -> str:
        """Says that it refuses."""
        return f"refused: gpus.control is none ({uuid}, {milliwatts} mW)"
