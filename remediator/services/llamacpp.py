"""llama.cpp's server (facts: `llama-server` of September 2026, build 7e4c0a9).

Started with a model it serves that one; started without, it is a router, which loads and unloads
models in processes of their own. `/health` is answered also while the engine hangs. `/metrics` and
`/slots` wake a server that sleeps, so a probe asks first whether it does, and a router whether it
has the model loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key, count, key_hint, message
from remediator.services._canaries import OneAtATime
from remediator.services._prometheus import read_samples, total
from remediator.services.base import Capabilities, Capability, LoadedModel, ServiceProbe
from remediator.waiting import wait_until

_RUNNING = "llamacpp:requests_processing"
_WAITING = "llamacpp:requests_deferred"
# It moves with each batch; the counters of tokens only when a prompt or a request ends.
_PROGRESS = "llamacpp:n_decode_total"
_NAMES = frozenset((_RUNNING, _WAITING, _PROGRESS))
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


@dataclass(frozen=True)
class _Engine:
    """Requests and decoded batches of one model; None where that cannot be read."""

    running: int | None = None
    waiting: int | None = None
    progress: float | None = None


class LlamaCpp:
    """`ServiceDriver` for llama.cpp's server."""

    kind = "llamacpp"

    def __init__(
        self, endpoint: str, probe_timeout: float, api_key: str | None, options: Options
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._api_key = api_key
        self._metrics = options.metrics
        self._embeds = options.canary == "embedding"
        self._canaries = OneAtATime()
        self._router: bool | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What it can; without metrics neither demand nor progress is known."""
        if self._metrics:
            return _CAPABILITIES
        return replace(_CAPABILITIES, demand=_NOT_READ, progress=_NOT_READ, drain=_NOT_READ)

    @property
    def can_unload(self) -> bool:
        """Only a router can, as the last probe saw it."""
        return self._router is True

    def probe(self) -> ServiceProbe:
        """Health, what it is and whether it sleeps, models, metrics; one deadline for them all."""
        left = Deadline(self._probe_timeout)
        try:
            health = self._get("/health", left)
            if health.status == 503 and message(health) == "Loading model":
                return ServiceProbe("loading", "it loads its model")
            if health.status != 200:
                return ServiceProbe("error", f"GET /health answered HTTP {health.status}")
            props = self._props(left)
            self._router = props.get("role") == "router"
            if self._router:
                return self._probe_router(left)
            if props.get("is_sleeping") is True:
                return ServiceProbe("sleeping", "it sleeps until the next request")
            names = [str(one["id"]) for one in self._listed("/v1/models", left)]
            return self._with_engines("it answers", names, (None,), left)
        except ServiceRefused as error:
            # What comes up next may have been started in another way.
            self._router = None
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
        if self._router:
            self._load_in_router(model, left)
            return
        served = [loaded.name for loaded in probes[0].models]
        if model not in served:
            names = ", ".join(served) or "no model"
            raise ServiceError(f"it serves {names}, not {model}; it has only what it started with")

    def unload(self, model: str, timeout: float) -> None:
        """Wait until no request uses it, and have the router end its process.

        The router would cut off requests that take longer than ten seconds more. One that comes
        between our look and the order still has those.
        """
        if self._router is None:
            self.probe()
        if not self.can_unload:
            raise ServiceError(
                f"a llama.cpp server that is no router cannot unload {model}; stopping it does"
            )
        left = Deadline(timeout)

        def unused() -> bool:
            status = self._status(model, left)
            value = status.get("value")
            # Asked for its requests, one that sleeps would be loaded again.
            return value in ("unloaded", "sleeping") or (
                value == "loaded" and not self._in_use(model, left)
            )

        if not wait_until(SystemClock(), left.seconds(), unused, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; it is in use")
        if self._status(model, left).get("value") != "unloaded":
            self._post("/models/unload", {"model": model}, left.seconds(), "the unload")

        def gone() -> bool:
            return self._status(model, left).get("value") == "unloaded"

        if not wait_until(SystemClock(), left.seconds(), gone, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; most likely it is in use")

    def canary(self, model: str, timeout: float) -> float:
        """One token, or one embedding; a router loads nothing for it; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        path, body, key = "/v1/completions", {"prompt": "ping", "max_tokens": 1}, "choices"
        if self._embeds:
            path, body, key = "/v1/embeddings", {"input": "ping"}, "data"
        with self._canaries.wait(timeout) as left:
            url = self._endpoint + path + "?autoload=false"
            whole = {"model": model, **body}
            answer = http.call("POST", url, timeout=left, body=whole, token=self._api_key)
        took = clock.monotonic() - started
        if answer.status == 500 and message(answer).startswith(_CUT_OFF):
            return took
        if answer.status != 200:
            raise self._failed("the canary", answer)
        raw = answer.json()
        if not isinstance(raw, dict) or not raw.get(key):
            raise ServiceError("the canary was not answered as llama.cpp does")
        return took

    def _probe_router(self, left: Deadline) -> ServiceProbe:
        states = {str(one["id"]): _state_of(one) for one in self._listed("/models", left)}
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
            engines = [self._engine(model, left) for model in asked]
        except ServiceTimeout as error:
            return replace(
                ready, state="silent", detail=f"{said}, but its engine does not: {error}"
            )
        running = _sum([engine.running for engine in engines])
        waiting = _sum([engine.waiting for engine in engines])
        return replace(
            ready,
            detail=f"{said}; {count(running)} running, {count(waiting)} waiting",
            requests_running=None if running is None else int(running),
            requests_waiting=None if waiting is None else int(waiting),
            progress=_sum([engine.progress for engine in engines]),
        )

    def _engine(self, model: str | None, left: Deadline) -> _Engine:
        """What `/metrics` says; without them what runs, from `/slots`.

        Raises:
            ServiceTimeout: neither yes nor no in time: a sign of a hang.
        """
        query = "" if model is None else "?" + urlencode({"model": model, "autoload": "false"})
        try:
            answer = self._get("/metrics" + query, left)
            samples = read_samples(answer.body, _NAMES) if answer.status == 200 else ()
            if samples:
                running, waiting = total(samples, _RUNNING), total(samples, _WAITING)
                return _Engine(
                    None if running is None else int(running),
                    None if waiting is None else int(waiting),
                    total(samples, _PROGRESS),
                )
            answer = self._get("/slots" + query, left)
            return _Engine(_busy_slots(answer.json()) if answer.status == 200 else None)
        except ServiceTimeout:
            raise
        except ServiceError:
            return _Engine()

    def _in_use(self, model: str, left: Deadline) -> bool:
        engine = self._engine(model, left)
        if engine.running is None:
            raise ServiceError(
                f"whether {model} is in use cannot be seen; start the router with --metrics"
            )
        return bool(engine.running or engine.waiting)

    def _load_in_router(self, model: str, left: Deadline) -> None:
        if self._status(model, left).get("value") == "unloaded":
            self._post("/models/load", {"model": model}, left.seconds(), f"loading {model}")

        def is_there() -> bool:
            status = self._status(model, left)
            value = status.get("value")
            if value == "unloaded":
                code = status.get("exit_code")
                raise ServiceError(
                    f"{model} could not be loaded: its process ended (exit code {code})"
                )
            if value == "sleeping":
                self.canary(model, left.seconds())
            return value == "loaded"

        if not wait_until(SystemClock(), left.seconds(), is_there, poll=_POLL):
            raise ServiceTimeout(f"{model} is not loaded in time")

    def _status(self, model: str, left: Deadline) -> Mapping[str, Any]:
        """What the router says of one model.

        Raises:
            ServiceError: it has no such model.
        """
        listed = {str(one["id"]): one.get("status") for one in self._listed("/models", left)}
        if model not in listed:
            has = ", ".join(listed) or "none"
            raise ServiceError(f"the router has no model {model}; it has: {has}")
        status = listed[model]
        if not isinstance(status, dict):
            raise ServiceError("GET /models did not answer as a llama.cpp router does")
        return status

    def _props(self, left: Deadline) -> Mapping[str, Any]:
        answer = self._get("/props", left)
        if answer.status != 200:
            raise self._failed("GET /props", answer)
        raw = answer.json()
        if not isinstance(raw, dict):
            raise ServiceError("GET /props did not answer as llama.cpp does")
        return raw

    def _listed(self, path: str, left: Deadline) -> list[dict[str, Any]]:
        answer = self._get(path, left)
        if answer.status != 200:
            raise self._failed(f"GET {path}", answer)
        raw = answer.json()
        data = raw.get("data") if isinstance(raw, dict) else None
        if not isinstance(data, list) or not all(
            isinstance(one, dict) and isinstance(one.get("id"), str) for one in data
        ):
            raise ServiceError(f"GET {path} did not answer as llama.cpp does")
        return data

    def _get(self, path: str, left: Deadline) -> http.Answer:
        # Whether it is healthy needs no key, and whoever answers there may not be it.
        key = None if path == "/health" else self._api_key
        return http.call("GET", self._endpoint + path, timeout=left.seconds(), token=key)

    def _post(self, path: str, body: Mapping[str, Any], timeout: float, what: str) -> None:
        url = self._endpoint + path
        answer = http.call("POST", url, timeout=timeout, body=body, token=self._api_key)
        if answer.status != 200:
            raise self._failed(what, answer)

    def _failed(self, what: str, answer: http.Answer) -> ServiceError:
        hint = key_hint(self._api_key, answer.status)
        return ServiceError(f"{what} failed (HTTP {answer.status}): {message(answer)}{hint}")


def _state_of(listed: Mapping[str, Any]) -> str:
    status = listed.get("status")
    return str(status.get("value")) if isinstance(status, dict) else ""


def _busy_slots(raw: object) -> int | None:
    slots = raw if isinstance(raw, list) else [None]
    busy = [slot.get("is_processing") if isinstance(slot, dict) else None for slot in slots]
    return sum(one is True for one in busy) if all(isinstance(one, bool) for one in busy) else None


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one is missing: a sum that it comes back to would look like progress."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
