"""The page's two formats: Prometheus text 0.0.4 and OpenMetrics 1.0.0.

The tests hold that prometheus-client writes the same bytes. It is not used here because the package
cannot be had without the web server, the HTTP client and the TLS that it loads: 4 MiB of the 18
that the process which serves took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from exporter.catalogue import Kind, Metric

END_OF_OPENMETRICS = b"# EOF\n"

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_SUFFIXES = {Kind.COUNTER: "_total", Kind.INFO: "_info", Kind.GAUGE: ""}


class Series:
    """How the series of one metric are written; made once, since lines are written by the hundred."""

    __slots__ = ("_count", "_labels", "_order", "metric", "openmetrics_header", "text_header")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.text_header = _text_header(metric)
        self.openmetrics_header = _openmetrics_header(metric)
        names = metric.label_names
        self._count = len(names)
        # By name, as prometheus-client has them.
        order = sorted(range(len(names)), key=names.__getitem__)
        labels = ",".join(f'{names[place]}="%s"' for place in order)
        self._labels = f"{metric.name}{{{labels}}}" if names else metric.name
        self._order: Callable[[tuple[str, ...]], object] = itemgetter(*order) if order else tuple

    def line(self, values: tuple[str, ...], value: float) -> str:
        """Return one series, with the values of its labels in the order of the catalogue.

        Raises:
            ValueError: there are more or fewer values than labels, or it is no reading: not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{self.metric.name}: {value} is not a reading")
        if len(values) != self._count:
            raise ValueError(f"{self.metric.name}: {values} for {self.metric.label_names}")
        together = "".join(values)
        if '"' in together or "\\" in together or "\n" in together:
            values = tuple(one.translate(_ESCAPES) for one in values)
        return f"{self._labels % self._order(values)} {number(value)}\n"


Family: TypeAlias = tuple[Series, list[bytes]]
"""A metric and its lines in pieces (`block`), which both formats share."""


def block(lines: Iterable[str]) -> bytes:
    """Return lines as a piece of a page."""
    # Half of a surrogate pair cannot be written: one such name must not cost the whole page.
    return "".join(lines).encode(errors="replace")


@dataclass(frozen=True, slots=True)
class Format:
    """How a page is written."""

    content_type: str
    header: Callable[[Series], bytes]
    end: bytes = b""

    def write(self, families: Iterable[Family]) -> bytes:
        """Return the families as a page."""
        parts: list[bytes] = []
        for series, blocks in families:
            parts.append(self.header(series))
            parts.extend(blocks)
        parts.append(self.end)
        return b"".join(parts)


def choose(accept: str) -> Format:
    """Return the format that one part of an Accept header asks for; text, if it is no other."""
    kind, *parameters = (part.strip() for part in accept.split(";"))
    named = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
    if kind != "application/openmetrics-text":
        return TEXT
    # What another version looks like is not known yet.
    return OPENMETRICS if named.get("version", "1").partition(".")[0] in {"", "1"} else TEXT


def number(value: float) -> str:
    """Return a finite number as Go prints it, which has exponents sooner than Python."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6:
        digits = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{digits}e+{dot - 1:02d}"
    return text


def _text_header(metric: Metric) -> bytes:
    kind = Kind.GAUGE if metric.kind is Kind.INFO else metric.kind
    text = metric.help.translate(_HELP_ESCAPES)
    return f"# HELP {metric.name} {text}\n# TYPE {metric.name} {kind.value}\n".encode()


def _openmetrics_header(metric: Metric) -> bytes:
    name = metric.name.removesuffix(_SUFFIXES[metric.kind])
    text = metric.help.translate(_ESCAPES)
    unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind.value}\n{unit}".encode()


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", lambda series: series.text_header)
OPENMETRICS = Format(
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    lambda series: series.openmetrics_header,
    END_OF_OPENMETRICS,
)
