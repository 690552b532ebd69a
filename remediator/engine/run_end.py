"""How a run ends: in which state, and what that tells its episode and on-call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from remediator.store.audit import Severity
from remediator.store.rows import IncidentState

End = Literal["succeeded", "ineffective", "failed", "ambiguous", "cancelled", "refused"]
# Seconds until an episode whose alert goes on firing is decided about anew. After a success that
# decision ends the claim that the target is being recovered, so that on-call hears of it.
LOOK_AGAIN: Mapping[End, float] = {"refused": 30.0, "succeeded": 60.0, "cancelled": 60.0}
NEEDS_HUMAN: tuple[End, ...] = ("ineffective", "failed", "ambiguous")
SEVERITY: Mapping[str, Severity] = {
    "succeeded": "info",
    "refused": "info",
    "cancelled": "info",
    "ineffective": "critical",
    "failed": "critical",
    "ambiguous": "critical",
}


class RunEnded(Exception):  # noqa: N818 - control flow between the journal and the execution
    """The run is over, in this state and for this reason."""

    def __init__(
        self,
        state: End,
        reason: str,
        sentence: str,
        *,
        needs_human: bool = False,
        by_a_gate: bool = False,
    ) -> None:
        self.state, self.reason, self.sentence = state, reason, sentence
        self.needs_human = needs_human or state in NEEDS_HUMAN
        # A gate says nothing of the fault: neither that it is refuted nor that it is mended.
        self.claims_nothing = by_a_gate and not self.needs_human

    def calls_nobody(self) -> None:
        """The playbook only tries: what it could not do is no reason to call a person."""
        self.claims_nothing = self.claims_nothing or self.needs_human
        self.needs_human = False


def end_after(state: str, reason: str, sentence: str) -> None:
    """End the run where a step's outcome ends it."""
    ends: Mapping[str, End] = {"refuted": "refused", "failed": "failed", "unknown": "ambiguous"}
    if state in ends:
        raise RunEnded(ends[state], reason, sentence)


def claim_of(end: RunEnded) -> IncidentState:
    """What on-call is told of the incident after this end."""
    if end.needs_human:
        return "needs_human"
    return "refuted" if end.state == "refused" else "recovering"


def may_take_back(end: RunEnded) -> bool:
    """Whether this end is news for who was called before: it helped, or it did not either."""
    return end.needs_human or end.state == "succeeded"
