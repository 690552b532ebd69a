"""Ollama (facts: server/routes.go and server/sched.go of August 2026).

It has no metrics: neither demand nor progress can be read, so a loaded model is asked for one
token instead. A model that is not loaded is never asked, for that would load it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._canaries import OneAtATime
from remediator.services.base import Capabilities, Capability, LoadedModel, ServiceProbe

_UNLOAD_POLL = 0.2
# An error of a runner can hold a page of its log; this goes into sentences and the audit.
_MAX_ERROR = 500
_SHORTEST_CALL = 0.05

_CAPABILITIES = Capabilities(
    models=Capability("yes", "GET /api/ps lists what is loaded, with its size"),
    demand=Capability("no", "Ollama has no metrics"),
    progress=Capability("no", "Ollama has no metrics; a canary tells whether it answers"),
    load=Capability("yes", "an empty prompt loads a model, and /api/ps must list it then"),
    free_memory=Capability("yes", "keep_alive 0 unloads a model once no request uses it"),
    drain=Capability("no", "it does not say what is in work"),
    canary=Capability("yes", "one token of a model that is loaded"),
)


@dataclass(frozen=True)
class Options:
    """Ollama has nothing to configure."""


def create(endpoint: str, options: Options, timing: Timing) -> Ollama:  # noqa: ARG001 - the contract
    """The driver of the Ollama at `endpoint`."""
    return Ollama(endpoint, timing.probe_timeout)


class Ollama:
    """`ServiceDriver` for Ollama."""

    kind = "ollama"
    can_unload = True
    capabilities = _CAPABILITIES

    def __init__(self, endpoint: str, probe_timeout: float) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._canaries = OneAtATime()

    def probe(self) -> ServiceProbe:
        """`GET /api/ps`: answered by the scheduler, so it works while a runner is busy."""
        try:
            answer = http.call("GET", self._endpoint + "/api/ps", timeout=self._probe_timeout)
        except ServiceRefused as error:
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        if answer.status != 200:
            return ServiceProbe("error", f"GET /api/ps answered HTTP {answer.status}")
        try:
            raw = answer.json()
            models = tuple(_model(one) for one in raw.get("models") or ())
        except (ServiceError, AttributeError, TypeError):
            return ServiceProbe("error", "GET /api/ps did not answer as Ollama does")
        return ServiceProbe("ready", f"{len(models)} model(s) loaded", models)

    def load(self, model: str, timeout: float) -> None:
        """An empty prompt loads the model; then it must be in `/api/ps`."""
        self._generate({"model": model, "stream": False}, timeout, "load")
        if _qualified(model) not in {_qualified(loaded.name) for loaded in self.probe().models}:
            raise ServiceError(f"Ollama said it loaded {model}, but /api/ps does not list it")

    def unload(self, model: str, timeout: float) -> None:
        """`keep_alive: 0` without a prompt; a model in use goes when its requests have ended.

        Ollama says 200 either way, also for a model that is not there, so `/api/ps` has the word.
        """
        clock = SystemClock()
        deadline = clock.monotonic() + timeout
        self._generate({"model": model, "keep_alive": 0, "stream": False}, timeout, "unload")
        never = threading.Event()
        while True:
            probe = self.probe()
            if probe.state != "ready":
                raise ServiceError(f"whether {model} is unloaded cannot be seen: {probe.detail}")
            if _qualified(model) not in {_qualified(loaded.name) for loaded in probe.models}:
                return
            if clock.monotonic() > deadline:
                raise ServiceTimeout(f"{model} is still loaded; most likely it is in use")
            clock.wait(never, _UNLOAD_POLL)

    def canary(self, model: str, timeout: float) -> float:
        """One token of a loaded model; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        with self._canaries.wait(timeout) as left:
            # Asked with another context than it was loaded with, Ollama loads the model anew.
            options = {"num_predict": 1, **self._context(model, min(left, self._probe_timeout))}
            body = {"model": model, "prompt": "ping", "stream": False, "options": options}
            rest = max(_SHORTEST_CALL, timeout - (clock.monotonic() - started))
            answer = self._generate(body, rest, "canary")
        if answer.get("done") is not True:
            raise ServiceError("the canary's answer is not complete")
        return clock.monotonic() - started

    def _context(self, model: str, timeout: float) -> dict[str, int]:
        """The context that the model is loaded with, as an option; empty where that is not said."""
        answer = http.call("GET", self._endpoint + "/api/ps", timeout=timeout)
        try:
            loaded = [
                raw for raw in answer.json()["models"] if _model(raw).name == _qualified(model)
            ]
            size = loaded[0]["context_length"]
        except (ServiceError, AttributeError, TypeError, LookupError):
            return {}
        return {"num_ctx": size} if isinstance(size, int) and size > 0 else {}

    def _generate(self, body: Mapping[str, Any], timeout: float, what: str) -> Mapping[str, Any]:
        answer = http.call("POST", self._endpoint + "/api/generate", timeout=timeout, body=body)
        raw = answer.json()
        if not isinstance(raw, dict):
            raise ServiceError(f"the {what} was not answered as Ollama does")
        if answer.status != 200:
            said = str(raw.get("error"))[:_MAX_ERROR]
            raise ServiceError(f"the {what} failed (HTTP {answer.status}): {said}")
        return raw


def _qualified(model: str) -> str:
    """The name as `/api/ps` lists it: without a tag it means the tag latest."""
    return model if ":" in model.rpartition("/")[2] else model + ":latest"


def _model(raw: Mapping[str, Any]) -> LoadedModel:
    size = raw.get("size_vram")
    return LoadedModel(
        name=str(raw.get("model") or raw.get("name")),
        memory_bytes=size if isinstance(size, int) else None,
        expires_at=_instant(raw.get("expires_at")),
    )


def _instant(raw: object) -> float | None:
    """Unix seconds of an instant as Go writes it; None for what is none, and for its zero."""
    try:
        at = datetime.fromisoformat(str(raw))
    except ValueError:
        return None
    return at.timestamp() if at.tzinfo is not None and at.year > 1 else None
