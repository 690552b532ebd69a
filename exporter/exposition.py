"""The page's two formats: Prometheus text 0.0.4 and OpenMetrics 1.0.0.

The tests hold that prometheus-client writes the same bytes. It is not used here because the package
cannot be had without the web server, the HTTP client and the TLS that it loads: 4 MiB of the 18
that the process which serves took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from exporter.catalogue import Kind, Metric

END_OF_OPENMETRICS = b"# EOF\n"
Family: TypeAlias = tuple[Metric, list[str]]
"""A metric and the lines of its series, which both formats share."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})
_SUFFIXES = {Kind.COUNTER: "_total", Kind.INFO: "_info", Kind.GAUGE: ""}


@dataclass(frozen=True, slots=True)
class Format:
    """How a page is written."""

    content_type: str
    header: Callable[[Metric], str]
    end: bytes = b""

    def write(self, families: Iterable[Family], *, last: bool = True) -> bytes:
        """Return the families as a page; `last` is false where more is to follow."""
        parts: list[str] = []
        for metric, lines in families:
            parts.append(self.header(metric))
            parts.extend(lines)
        # Half of a surrogate pair cannot be written: one such name must not cost the whole page.
        body = "".join(parts).encode(errors="replace")
        return body + self.end if last else body


def choose(accept: str) -> Format:
    """Return the format that one part of an Accept header asks for; text, if it is no other."""
    kind, *parameters = (part.strip() for part in accept.split(";"))
    named = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
    if kind != "application/openmetrics-text":
        return TEXT
    # What another version looks like is not known yet.
    return OPENMETRICS if named.get("version", "1").partition(".")[0] in {"", "1"} else TEXT


def line(metric: Metric, values: tuple[str, ...], value: float) -> str:
    """Return one series, with the values of its labels in the order of the catalogue.

    Raises:
        ValueError: there are more or fewer values than labels.
    """
    if len(values) != len(metric.label_names):
        raise ValueError(f"{metric.name}: {len(values)} values for {metric.label_names}")
    if not values:
        return f"{metric.name} {number(value)}\n"
    labels = ",".join(
        f'{name}="{values[place].translate(_ESCAPES)}"' for name, place in _places(metric)
    )
    return f"{metric.name}{{{labels}}} {number(value)}\n"


def number(value: float) -> str:
    """Return a finite number as Go prints it, which has exponents sooner than Python."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6:
        digits = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{digits}e+{dot - 1:02d}"
    return text


@cache
def _places(metric: Metric) -> tuple[tuple[str, int], ...]:
    """Return the labels by name, and where the value of each stands."""
    return tuple(sorted((name, place) for place, name in enumerate(metric.label_names)))


@cache
def _text_header(metric: Metric) -> str:
    kind = Kind.GAUGE if metric.kind is Kind.INFO else metric.kind
    text = metric.help.translate(_HELP_ESCAPES)
    return f"# HELP {metric.name} {text}\n# TYPE {metric.name} {kind.value}\n"


@cache
def _openmetrics_header(metric: Metric) -> str:
    name = metric.name.removesuffix(_SUFFIXES[metric.kind])
    text = metric.help.translate(_ESCAPES)
    unit = f"# UNIT {name} {metric.unit}\n" if metric.unit else ""
    return f"# HELP {name} {text}\n# TYPE {name} {metric.kind.value}\n{unit}"


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", _text_header)
OPENMETRICS = Format(
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    _openmetrics_header,
    END_OF_OPENMETRICS,
)
