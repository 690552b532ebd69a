"""The corpus notices when a verdict gets worse: each safeguard that is taken out breaks traces."""

from __future__ import annotations

import pytest

from remediator import hang_evidence
from remediator.config import Config
from remediator.policy import verdict
from remediator.policy.verdict import CardEvidence
from remediator.store import Store
from tests.remediator.corpus import traces
from tests.remediator.corpus.replay import Replay, Rules
from tests.remediator.corpus.test_corpus import stage
from tests.remediator.corpus.verdicts import wrong

__all__ = ["stage"]

CORPUS = traces.every()
Stage = tuple[Store, Config, Rules]


def broken(stage: Stage, label: str) -> int:
    """How many of the first traces of this label come out wrong."""
    chosen = [trace for trace in CORPUS if trace.label == label][:6]
    return sum(wrong(trace, Replay(trace, *stage).run()) is not None for trace in chosen)


@pytest.mark.parametrize(
    ("label", "what", "name", "instead"),
    [
        ("long_prefill", verdict, "_PATIENCE_WITH_POWER", 1.0),
        ("stall", verdict, "_PATIENCE_WITH_POWER", 9.0),
        ("stall", CardEvidence, "low", False),
        ("long_single_request", CardEvidence, "idle", True),
        ("hang_low_power", CardEvidence, "idle", True),
        ("node_fault", hang_evidence, "_AT_ONCE", -1.0),
    ],
)
def test_without_a_safeguard_traces_come_out_wrong(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    label: str,
    what: object,
    name: str,
    instead: object,
) -> None:
    monkeypatch.setattr(what, name, instead)
    assert broken(stage, label)


def test_an_overloaded_server_that_counts_as_failed_would_be_restarted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_evidence, "_OVERLOADED", 0)
    full = [trace for trace in CORPUS if any(p.get("canary") == "overloaded" for p in trace.phases)]
    assert any(wrong(trace, Replay(trace, *stage).run()) for trace in full)
