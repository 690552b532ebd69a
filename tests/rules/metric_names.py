"""The metrics that rules may name: what the exporter and the remediator promise, and Prometheus' own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

import promql_parser

from exporter.catalogue import METRICS
from exporter.readings import CLOCK_EVENT_REASONS, RECOVERY_ACTIONS, FaultReason
from remediator.engine.log_watch import KINDS
from remediator.store.rows import OUTCOMES, IncidentState
from tests.rules import shipped

PROMETHEUS: Mapping[str, frozenset[str]] = {
    "up": frozenset(),
    "ALERTS": frozenset({"alertstate", "page"}),
    "ALERTS_FOR_STATE": frozenset({"page"}),
}
TARGET = frozenset({"job", "instance"})

# The values of labels that are enumerations: a misspelt one never matches, and says nothing.
VALUES: Mapping[tuple[str, str], frozenset[str]] = {
    ("gpu_fault", "reason"): frozenset(map(str, FaultReason)),
    ("gpu_clock_event_active", "reason"): frozenset(CLOCK_EVENT_REASONS),
    ("gpu_recovery_action", "action"): frozenset(RECOVERY_ACTIONS),
    ("gpu_ecc_errors_total", "severity"): frozenset({"corrected", "uncorrected"}),
    ("gpu_temperature_threshold_celsius", "level"): frozenset({"warning", "critical", "shutdown"}),
    ("gpu_memory_threshold_bytes", "level"): frozenset({"warning", "critical", "max"}),
    ("remediator_incident_state", "state"): frozenset(get_args(IncidentState)),
    ("llm_service_log_errors_total", "kind"): frozenset(KINDS),
    ("remediator_runs_total", "outcome"): frozenset(OUTCOMES),
    ("ALERTS", "alertstate"): frozenset({"firing"}),
    ("ALERTS", "page"): frozenset({"now", "unfixed", "never"}),
    ("ALERTS_FOR_STATE", "page"): frozenset({"now", "unfixed", "never"}),
}


def known() -> dict[str, frozenset[str]]:
    """Label names by metric."""
    exporter = {name: frozenset(metric.label_names) for name, metric in METRICS.items()}
    return {**exporter, **_remediator(), **PROMETHEUS}


def _remediator() -> dict[str, frozenset[str]]:
    """As its document has them, which a test of its own holds to what it serves."""
    text = (shipped.ROOT / "docs" / "metrics.md").read_text().partition("\n## gpu-remediator\n")[2]
    table = re.findall(r"^\| `(\w+)` \| \w+ \|([^|]*)\|", text, re.MULTILINE)
    return {name: frozenset(re.findall(r"\w+", labels)) for name, labels in table}


def selected_in(expr: str) -> list[tuple[str, dict[str, str]]]:
    """Every metric in an expression, with the labels that it is selected by and what they are to be.

    Raises:
        ValueError: The expression does not parse.
    """
    found: list[tuple[str, dict[str, str]]] = []

    def note(node: object) -> None:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            labels = {matcher.name: matcher.value for matcher in node.matchers.matchers}
            found.append((node.name, labels))

    promql_parser.walk(promql_parser.parse(expr), note)
    return found
