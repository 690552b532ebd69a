"""What a labelled trace is: phases of what cards and servers show, and what has to come of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
FILES = (HERE / "synthetic.jsonl", HERE / "cited.jsonl")

Label = Literal[
    "busy",
    "long_prefill",
    "long_single_request",
    "idle",
    "ghost",
    "loading",
    "sleeping",
    "batch_end",
    "stall",
    "hang_low_power",
    "device_fault",
    "node_fault",
]
HEALTHY: tuple[Label, ...] = (
    "busy",
    "long_prefill",
    "long_single_request",
    "idle",
    "ghost",
    "loading",
    "sleeping",
    "batch_end",
)

# nothing: never a restart.             restart: the stuck service is named for one in 150 s.
# watched: named as standing still in 150 s, restarted only later, for it draws what work draws.
# reported: a person is told in 300 s (or it is restarted, where `may_restart`).
# device: the driver's own word leads to a reset or a person in 20 s, never to a restart.
# escalated: a person is told at once, nothing is restarted.
Expect = Literal["nothing", "restart", "watched", "reported", "device", "escalated"]


@dataclass(frozen=True)
class Trace:
    """One trace.

    `began` is when what is wrong began, in seconds; None where nothing is. `learned` are the watts
    that the cards drew in the days before, `idle` and `busy`, each from and to; None for a fresh
    installation. A phase holds `for` so many seconds: what every card and every service shows, with
    `cards` and `services` for those that differ.
    """

    id: str
    label: Label
    why: str
    expect: Expect
    source: str
    phases: tuple[Mapping[str, Any], ...]
    held_out: bool = False
    began: float | None = None
    limit: float = 400.0
    cards: int = 1
    services: tuple[Mapping[str, Any], ...] = ({"name": "llm", "cards": [0], "metrics": True},)
    learned: Mapping[str, tuple[float, float]] | None = None
    may_restart: bool = False
    stuck: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return float(sum(phase["for"] for phase in self.phases))

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.label in HEALTHY

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


def write(path: Path, traces: Iterable[Trace]) -> None:
    """Write them, one a line."""
    path.write_text("".join(trace.line() + "\n" for trace in traces))


def read(path: Path) -> list[Trace]:
    """All traces of a file."""
    return [_trace(json.loads(line)) for line in path.read_text().splitlines()]


def every() -> list[Trace]:
    """The whole corpus."""
    return [trace for path in FILES for trace in read(path)]


def _trace(raw: dict[str, Any]) -> Trace:
    for key in ("phases", "services", "stuck"):
        raw[key] = tuple(raw[key])
    return Trace(**raw)
