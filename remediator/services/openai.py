"""Another server with OpenAI's API: its models and one small request, and nothing else is assumed.

Demand and progress are read only from the metrics that the configuration names, because there is no
name that all such servers share. No health endpoint is asked: what one does is not agreed on
either (LiteLLM's `/health` calls every model of every provider).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ConfigError, ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key, check_address, count
from remediator.services._canaries import OneAtATime
from remediator.services._openai import Canary, ask, models_in, wait_until_served
from remediator.services._prometheus import read_samples, total, whole
from remediator.services.base import Capabilities, Capability, ServiceProbe

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NOT_NAMED = "no metric of it is configured"
_CAPABILITIES = Capabilities(
    models=Capability("yes", "GET /v1/models"),
    demand=Capability("yes", "the configured gauges"),
    progress=Capability("yes", "the configured counters"),
    load=Capability("partly", "waits until it serves what it was started with; no other model"),
    free_memory=Capability("no", "OpenAI's API has no such thing"),
    drain=Capability("yes", "waits until no request runs; new ones still come in"),
    canary=Capability("yes", "one token, or one embedding"),
)


@dataclass(frozen=True)
class Options:
    """`lists` is what its `/v1/models` means: `available` ones may not be loaded.

    `running` and `waiting` name gauges, and `progress` counters, at `metrics_url`; a counter that
    moves only at the end of a request is none.
    """

    api_key_file: Path | None = None
    canary: Canary = "completion"
    lists: Literal["loaded", "available"] = "loaded"
    metrics_url: str = ""
    running: str = ""
    waiting: str = ""
    progress: tuple[str, ...] = ()


def create(endpoint: str, options: Options, timing: Timing) -> OpenAi:
    """The driver of the server at `endpoint`.

    Raises:
        ConfigError: an option cannot be used.
    """
    check_address(options.metrics_url, "metrics_url")
    for name in _named(options):
        if not options.metrics_url:
            raise ConfigError(f"options.metrics_url is needed to read {name}")
        if not _METRIC.fullmatch(name):
            raise ConfigError(f"options: {name!r} is no metric's name; a metric without labels")
    return OpenAi(endpoint, timing.probe_timeout, options)


class OpenAi:
    """`ServiceDriver` for any server with OpenAI's API."""

    kind = "openai"
    can_unload = False

    def __init__(self, endpoint: str, probe_timeout: float, options: Options) -> None:
        # People write the base address either way.
        self._endpoint = endpoint.rstrip("/").removesuffix("/v1")
        self._probe_timeout = probe_timeout
        self._options = options
        self._api_key = api_key(options.api_key_file)
        self._canaries = OneAtATime()

    @property
    def capabilities(self) -> Capabilities:
        """What it can, by what is configured."""
        found, options = _CAPABILITIES, self._options
        none = Capability("no", _NOT_NAMED)
        if not (options.running and options.waiting):
            some = Capability("partly", f"{options.running or options.waiting}; not the other half")
            found = replace(found, demand=some if options.running or options.waiting else none)
        if not options.running:
            found = replace(found, drain=none)
        if not options.progress:
            found = replace(found, progress=none)
        if options.lists == "available":
            why = "its /v1/models lists what could be loaded, and asking for that would load it"
            found = replace(found, models=Capability("no", why), canary=Capability("no", why))
            found = replace(found, load=Capability("no", "a request loads, and nobody can see it"))
        return found

    def probe(self) -> ServiceProbe:
        """Models and metrics; one deadline for both."""
        left = Deadline(self._probe_timeout)
        try:
            url = self._endpoint + "/v1/models"
            answer = http.call("GET", url, timeout=left.seconds(), token=self._api_key)
            models = models_in(answer, "such a server", self._api_key)
        except ServiceRefused as error:
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        known = models if self._options.lists == "loaded" else ()
        return self._with_metrics(ServiceProbe("ready", "it answers", known), left)

    def load(self, model: str, timeout: float) -> None:
        """Wait until it serves `model`: the API has no way to load one."""
        if self._options.lists == "available":
            raise ServiceError(f"whether {model} is loaded cannot be seen: options.lists")
        wait_until_served(self.probe, model, "such a server", timeout)

    def unload(self, model: str, timeout: float) -> None:  # noqa: ARG002 - the contract
        """The API has no such thing."""
        raise ServiceError(f"OpenAI's API cannot unload {model}; only stopping the server does")

    def canary(self, model: str, timeout: float) -> float:
        """One token, or one embedding; never two canaries at once."""
        if self._options.lists == "available":
            raise ServiceError(f"{model} is not asked: that could load it (options.lists)")
        clock = SystemClock()
        started = clock.monotonic()
        what = self._options.canary
        with self._canaries.wait(timeout) as left:
            ask(self._endpoint, model, what, "such a server", timeout=left, key=self._api_key)
        return clock.monotonic() - started

    def _with_metrics(self, probe: ServiceProbe, left: Deadline) -> ServiceProbe:
        options = self._options
        names = frozenset(_named(options))
        if not names:
            return probe
        try:
            answer = http.call("GET", options.metrics_url, timeout=left.seconds())
            samples = read_samples(answer.body, names) if answer.status == 200 else ()
        except ServiceError as error:
            return replace(probe, detail=f"it answers, but not with metrics: {error}")
        running, waiting = whole(samples, options.running), whole(samples, options.waiting)
        # One counter that is missing for a while would look as if the sum had gone back.
        moved = [total(samples, name) for name in options.progress]
        known = [value for value in moved if value is not None]
        return replace(
            probe,
            detail=f"{count(running)} running, {count(waiting)} waiting",
            requests_running=running,
            requests_waiting=waiting,
            progress=sum(known) if known and len(known) == len(moved) else None,
        )


def _named(options: Options) -> tuple[str, ...]:
    return tuple(name for name in (options.running, options.waiting, *options.progress) if name)
