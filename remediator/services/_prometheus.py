"""Reads the few samples that a driver wants from a server's metrics page."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from remediator.errors import ServiceError


def read_samples(page: bytes, names: Collection[str]) -> tuple[Sample, ...]:
    """The samples of these `names` (with their suffixes) on a page in the text format.

    Raises:
        ServiceError: a line of theirs cannot be read.
    """
    # Only what is wanted is parsed: a page may be large, and the rest of it is not our affair.
    lines = [
        line for line in page.decode("utf-8", errors="replace").splitlines() if _name(line) in names
    ]
    try:
        families = text_string_to_metric_families("\n".join(lines) + "\n")
        return tuple(sample for family in families for sample in family.samples)
    except (ValueError, IndexError, KeyError):
        raise ServiceError("the metrics page is not in the Prometheus text format") from None


def total(samples: Iterable[Sample], name: str) -> float | None:
    """The sum over all engines; None where the page has none, or one is not a count."""
    values = [sample.value for sample in samples if sample.name == name]
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        return None
    return sum(values)


def whole(samples: Iterable[Sample], name: str) -> int | None:
    """The same as a number of requests."""
    found = total(samples, name)
    return None if found is None else int(found)


def summed(samples: Collection[Sample], histogram: str) -> tuple[int | None, float | None]:
    """How many observations a histogram has, and their sum, over all engines; both or neither.

    A page that has other samples but not this histogram has observed nothing yet.
    """
    names = (f"{histogram}_count", f"{histogram}_sum")
    if not any(sample.name in names for sample in samples):
        return 0, 0.0
    count, seconds = (total(samples, name) for name in names)
    return (None, None) if count is None or seconds is None else (int(count), seconds)


def _name(line: str) -> str:
    return line.partition("{")[0].split(" ", 1)[0]
