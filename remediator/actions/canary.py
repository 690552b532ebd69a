"""One small request to a loaded model: does the service really answer?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remediator.actions.base import Harmless, Intent, Outcome, StepContext
from remediator.config.strict import Seconds
from remediator.first_requests import remember_answer


@dataclass(frozen=True)
class Parameters:
    """How long the answer may take."""

    within: Seconds = 60.0


def create(parameters: Parameters) -> Canary:
    """The action."""
    return Canary(parameters.within)


class Canary(Harmless):
    """Never asks for a model that is not loaded: that would load it."""

    kind = "canary"

    def __init__(self, within: float) -> None:
        self._within = within

    def describe(self, context: StepContext) -> str:
        """What is asked."""
        return f"ask {context.on_service.name} for one token of a loaded model"

    def intend(self, context: StepContext) -> Intent:
        """Choose a loaded model."""
        loaded = context.on_service.driver.probe().models
        if not loaded:
            return Intent(f"{context.on_service.name} has no model loaded to ask", nothing=True)
        return Intent(self.describe(context), {"model": loaded[0].name})

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Ask and wait for the token."""
        service = context.on_service
        took = service.driver.canary(intent["model"], self._within)
        remember_answer(context.world, service.name, took)
        return Outcome(
            "done",
            "answered",
            f"{service.name} answered a canary of {intent['model']} in {took:.1f} s",
            {"seconds": round(took, 3)},
        )
