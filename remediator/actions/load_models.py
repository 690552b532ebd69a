"""Load the models that the service had loaded when it was last well, and warm them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remediator.actions._service import why_left_down
from remediator.actions.base import Harmless, Intent, Outcome, StepContext
from remediator.config.strict import Seconds
from remediator.error_signatures import classify
from remediator.errors import ServiceError
from remediator.first_requests import remember_warm_up
from remediator.load_advice import advice


@dataclass(frozen=True)
class Parameters:
    """How long one model may take, and its first request; with `0s` there is none."""

    within: Seconds = 300.0
    warm_up_within: Seconds = 60.0


def create(parameters: Parameters) -> LoadModels:
    """The action."""
    return LoadModels(parameters)


class LoadModels(Harmless):
    """What was loaded, or else what the configuration names.

    The first request to a model is slow: one of ours takes that from the users. It may fail; the
    canary after it, or the next user, says whether that matters.
    """

    kind = "load_models"

    def __init__(self, parameters: Parameters) -> None:
        self._within = parameters.within
        self._warm_up_within = parameters.warm_up_within

    def describe(self, context: StepContext) -> str:
        """Which models."""
        return f"load again what {context.on_service.name} had loaded"

    def intend(self, context: StepContext) -> Intent:
        """Pin the list now: later probes must not shorten it."""
        down = why_left_down(context)
        if down is not None:
            return Intent(down, nothing=True, reason="left_down")
        service = context.on_service
        with context.world.store.reading() as tx:
            remembered = tx.inventory.service(service.name).models
        models = remembered or service.config.models
        if not models:
            return Intent(f"{service.name} had no model loaded", nothing=True)
        return Intent(f"load {', '.join(models)} into {service.name}", {"models": list(models)})

    def run(self, context: StepContext, intent: Mapping[str, Any]) -> Outcome:
        """Load each and see that it is there."""
        service = context.on_service
        for model in intent["models"]:
            self._load(context, model)
        names = ", ".join(intent["models"])
        took, said = self._warm_up(context, intent["models"])
        whole = f"{service.name} has {names} loaded again{said}"
        return Outcome("done", "loaded", whole, {"warm_up_seconds": took})

    def _load(self, context: StepContext, model: str) -> None:
        service = context.on_service
        try:
            service.driver.load(model, self._within)
        except ServiceError as error:
            found = classify(str(error))
            if found.kind != "out_of_memory":
                raise
            raise ServiceError(f"{error}; {advice(context.world, service, found.where)}") from None

    def _warm_up(
        self, context: StepContext, models: Sequence[str]
    ) -> tuple[Mapping[str, float], str]:
        """How long the first request to each took (seconds), and what is to be said of it."""
        service, took, failed = context.on_service, {}, ""
        for model in models if self._warm_up_within > 0 else ():
            try:
                took[model] = round(service.driver.canary(model, self._warm_up_within), 3)
            except ServiceError as error:
                failed = f", though the first request to {model} failed: {error}"
        if took:
            remember_warm_up(context.world, service.name, max(took.values()))
        slowest = f"; its first request took {max(took.values()):.1f} s" if took else ""
        return took, slowest + failed
