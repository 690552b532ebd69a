"""Look again: is there still something to repair? If not, the run ends here, refuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remediator import signals
from remediator.actions.base import Harmless, Intent, Outcome, StepContext
from remediator.config.strict import Seconds
from remediator.targets import Target

# What is coming up is not down, however long it takes; the alert is looked into again soon.
_SOMEBODY_IS_AT_IT = ("starting", "loading", "manager_restarting")


@dataclass(frozen=True)
class Parameters:
    """`signal` must be present; while it is unknown it is read again, for `within`."""

    signal: str
    within: Seconds = 60.0


def create(parameters: Parameters) -> Check:
    """The action."""
    return Check(signals.create({"signal": parameters.signal}, "check"), parameters)


class Check(Harmless):
    """Evidence taken anew, in the middle of a run."""

    kind = "check"

    def __init__(self, signal: signals.Signal, parameters: Parameters) -> None:
        self._signal = signal
        self._parameters = parameters

    def describe(self, context: StepContext) -> str:
        """What is looked at."""
        return f"look again whether it is still so of {context.on_service.name}: {self._parameters.signal}"

    def intend(self, context: StepContext) -> Intent:
        """Only looks."""
        return Intent(self.describe(context))

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:  # noqa: ARG002
        """Present: go on. Absent, or somebody else is at it: refuted. Unknown to the end: failed."""
        target = Target("service", context.on_service.name)
        clock = context.world.clock
        deadline = clock.monotonic() + self._parameters.within
        finding = self._signal.read(context.world, target)
        while (
            finding.state == "unknown"
            and finding.reason not in _SOMEBODY_IS_AT_IT
            and clock.monotonic() < deadline
        ):
            context.wait(1.0)
            finding = self._signal.read(context.world, target)
        state: Literal["done", "refuted", "failed"] = "failed"
        if finding.state == "present":
            state = "done"
        elif finding.state == "absent" or finding.reason in _SOMEBODY_IS_AT_IT:
            state = "refuted"
        return Outcome(state, finding.reason, finding.sentence, finding.data)
