"""What has to come of a trace, in seconds, and whether it did."""

from __future__ import annotations

from tests.remediator.corpus.replay import Outcome
from tests.remediator.corpus.traces import Trace

STALL = 150.0
REPORT = 300.0
DEVICE = 20.0
WATCHED = 420.0


def wrong(trace: Trace, outcome: Outcome) -> str | None:
    """What is not as it has to be; None where all is."""
    began = trace.began or 0.0

    def late(at: float | None, limit: float) -> bool:
        return at is None or not 0 <= at - began <= limit

    if outcome.restarted is not None:
        if trace.healthy or trace.expect in ("device", "escalated"):
            return f"{outcome.restarted} was restarted at {outcome.restart_at}"
        if trace.expect == "reported" and not trace.may_restart:
            return f"{outcome.restarted} was restarted on a suspicion"
        if outcome.restarted not in trace.stuck or (outcome.restart_at or 0.0) < began:
            return f"{outcome.restarted} was restarted, which is well"
    if trace.expect == "restart" and late(outcome.restart_at, STALL):
        return f"the stall was to be ended: {outcome}"
    unwatched = late(outcome.named_at, STALL) or late(outcome.restart_at, WATCHED)
    if trace.expect == "watched" and unwatched:
        return f"the stall was to be named, and ended later: {outcome}"
    if trace.expect == "reported":
        at = outcome.restart_at if outcome.restarted else outcome.paged_at
        if late(at, REPORT):
            return f"nobody was told: {outcome}"
    if trace.expect == "device" and late(outcome.device_at, DEVICE):
        return f"the fault of the device was not seen in time: {outcome}"
    if trace.expect == "escalated" and late(outcome.paged_at, STALL):
        return f"nobody was told of the node's fault: {outcome}"
    return None
