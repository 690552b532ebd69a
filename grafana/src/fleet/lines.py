"""The lines that most panels of this dashboard are made of: one for each card, with its name."""

from __future__ import annotations

from grafana.src.panel import Query
from grafana.src.selection import LEGEND, card, named


def reading(metric: str, legend: str = LEGEND) -> Query:
    """A metric as it is."""
    return Query(named(card(metric)), legend=legend)


def per_second(metric: str, legend: str = LEGEND, *, above: str = "") -> Query:
    """How fast a counter rises; only where it is above a number, when one is given."""
    rate = named(f"rate({card(metric)}[$__rate_interval])")
    return Query(f"{rate}\n> {above}" if above else rate, legend=legend)
