"""llama.cpp's server (facts: `llama-server` of September 2026, build 7e4c0a9).

Started with a model it serves that one; started without, it is a router, which loads and unloads
models in processes of their own. `/health` is answered also while the engine hangs. `/metrics` and
`/slots` wake a server that sleeps, so a probe asks first whether it does, and a router whether it
has the model loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key, count, message
from remediator.services._canaries import OneAtATime
from remediator.services._llamacpp_router import Router
from remediator.services._llamacpp_server import Server, together
from remediator.services.base import Capabilities, Capability, LoadedModel, ServiceProbe
from remediator.waiting import wait_until

# What the engine made is cut off in the middle of a character: not nice, but it made it.
_CUT_OFF = "The model produced output that does not match"
_POLL = 0.2
_NOT_READ = Capability("no", "options.metrics is false: neither /metrics nor /slots is read")
_CAPABILITIES = Capabilities(
    models=Capability("yes", "/v1/models, or what a router says is loaded"),
    demand=Capability("partly", "with --metrics; without, only what runs is known, from /slots"),
    progress=Capability("partly", "decoded batches, with --metrics"),
    load=Capability("partly", "a router loads it; another server is waited for, and woken"),
    free_memory=Capability(
        "partly", "a router ends a model's process once no request uses it; another server cannot"
    ),
    drain=Capability("yes", "waits until no request runs; new ones still come in"),
    canary=Capability("yes", "one token, or one embedding, of a model that is loaded"),
)


@dataclass(frozen=True)
class Options:
    """`api_key_file` holds what the server was given as `--api-key`, on one line.

    Without `metrics` neither demand nor progress is read: reading them counts as use, so a server
    with `--sleep-idle-seconds` would never fall asleep. `canary` is what it is asked for.
    """

    api_key_file: Path | None = None
    metrics: bool = True
    canary: Literal["completion", "embedding"] = "completion"


def create(endpoint: str, options: Options, timing: Timing) -> LlamaCpp:
    """The driver of the llama.cpp server at `endpoint`.

    Raises:
        ConfigError: the key file cannot be used.
    """
    key = api_key(options.api_key_file)
    return LlamaCpp(endpoint, timing.probe_timeout, key, options)


class LlamaCpp:
    """`ServiceDriver` for llama.cpp's server."""

    kind = "llamacpp"

    def __init__(
        self, endpoint: str, probe_timeout: float, api_key: str | None, options: Options
    ) -> None:
        self._server = Server(endpoint, api_key)
        self._router = Router(self._server)
        self._probe_timeout = probe_timeout
        self._metrics = options.metrics
        self._embeds = options.canary == "embedding"
        self._canaries = OneAtATime()
        self._is_router: bool | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What it can; without metrics neither demand nor progress is known."""
        if self._metrics:
            return _CAPABILITIES
        return replace(_CAPABILITIES, demand=_NOT_READ, progress=_NOT_READ, drain=_NOT_READ)

    @property
    def can_unload(self) -> bool:
        """Only a router can, as the last probe saw it."""
        return self._is_router is True

    def probe(self) -> ServiceProbe:
        """Health, what it is and whether it sleeps, models, metrics; one deadline for them all."""
        left = Deadline(self._probe_timeout)
        try:
            health = self._server.get("/health", left)
            if health.status == 503 and message(health) == "Loading model":
                return ServiceProbe("loading", "it loads its model")
            if health.status != 200:
                return ServiceProbe("error", f"GET /health answered HTTP {health.status}")
            props = self._server.props(left)
            self._is_router = props.get("role") == "router"
            if self._is_router:
                return self._probe_router(left)
            if props.get("is_sleeping") is True:
                return ServiceProbe("sleeping", "it sleeps until the next request")
            names = [str(one["id"]) for one in self._server.listed("/v1/models", left)]
            return self._with_engines("it answers", names, (None,), left)
        except ServiceRefused as error:
            # What comes up next may have been started in another way.
            self._is_router = None
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))

    def load(self, model: str, timeout: float) -> None:
        """A router loads it; another server is waited for until it serves it, and woken."""
        left = Deadline(timeout)
        probes = [self.probe()]

        def answers() -> bool:
            if probes[0].state == "sleeping":
                self.canary(model, left.seconds())
            probes[0] = self.probe()
            return probes[0].state == "ready"

        if not wait_until(SystemClock(), left.seconds(), answers, poll=_POLL):
            raise ServiceTimeout(f"the server is not ready to serve {model}: {probes[0].detail}")
        if self._is_router:
            self._router.load(model, left, self.canary)
            return
        served = [loaded.name for loaded in probes[0].models]
        if model not in served:
            names = ", ".join(served) or "no model"
            raise ServiceError(f"it serves {names}, not {model}; it has only what it started with")

    def unload(self, model: str, timeout: float) -> None:
        """Wait until no request uses it, and have the router end its process."""
        if self._is_router is None:
            self.probe()
        if not self.can_unload:
            raise ServiceError(
                f"a llama.cpp server that is no router cannot unload {model}; stopping it does"
            )
        self._router.unload(model, Deadline(timeout))

    def canary(self, model: str, timeout: float) -> float:
        """One token, or one embedding; a router loads nothing for it; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        path, body, key = "/v1/completions", {"prompt": "ping", "max_tokens": 1}, "choices"
        if self._embeds:
            path, body, key = "/v1/embeddings", {"input": "ping"}, "data"
        with self._canaries.wait(timeout) as left:
            answer = self._server.send(path + "?autoload=false", {"model": model, **body}, left)
        took = clock.monotonic() - started
        if answer.status == 500 and message(answer).startswith(_CUT_OFF):
            return took
        if answer.status != 200:
            raise self._server.failed("the canary", answer)
        raw = answer.json()
        if not isinstance(raw, dict) or not raw.get(key):
            raise ServiceError("the canary was not answered as llama.cpp does")
        return took

    def _probe_router(self, left: Deadline) -> ServiceProbe:
        states = self._router.states(left)
        loaded = [name for name, state in states.items() if state == "loaded"]
        said = f"router: {len(loaded)} model(s) loaded"
        for state in ("loading", "sleeping"):
            if many := sum(1 for one in states.values() if one == state):
                said += f", {many} {state}"
        return self._with_engines(said, loaded, loaded, left)

    def _with_engines(
        self, said: str, names: Sequence[str], asked: Sequence[str | None], left: Deadline
    ) -> ServiceProbe:
        """A server that is up, with what its engines say; `silent` where one does not answer."""
        models = tuple(LoadedModel(name, None) for name in names)
        ready = ServiceProbe("ready", said, models)
        if not self._metrics:
            return ready
        try:
            found = together([self._server.engine(model, left) for model in asked])
        except ServiceTimeout as error:
            return replace(
                ready, state="silent", detail=f"{said}, but its engine does not: {error}"
            )
        return replace(
            ready,
            detail=f"{said}; {count(found.running)} running, {count(found.waiting)} waiting",
            requests_running=found.running,
            requests_waiting=found.waiting,
            progress=found.progress,
        )
