"""SGLang (facts: its HTTP server, version 0.5.23).

`/health` has one token generated, which takes a second at least and up to twenty, so a probe asks
`/ready`, which only looks, and the canary asks `/health_generate`. `/release_memory_occupation` is
never called: on a server with work it ends the scheduler, and without `--enable-memory-saver` it
does nothing and answers 200.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key
from remediator.services._canaries import OneAtATime
from remediator.services._engine import EngineMetrics, with_ours
from remediator.services._openai import Canary, ask, models_in, wait_until_served
from remediator.services.base import Capabilities, Capability, ServiceProbe

_METRICS = EngineMetrics(
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    # They move with each step of the engine; sglang:generation_tokens_total only at a request's end.
    progress=("sglang:realtime_tokens_total", "sglang:forward_execution_seconds_total"),
    first_tokens="sglang:time_to_first_token_seconds",
)
# A health check that found no sign of life answers 503 after SGLANG_HEALTH_CHECK_TIMEOUT, 20 s. One
# that comes much sooner is of a server that starts or ends.
_LOOKED_IN_VAIN = 5.0
_CAPABILITIES = Capabilities(
    models=Capability("yes", "GET /v1/models: the one that it was started with"),
    demand=Capability("yes", "from /metrics, with --enable-metrics"),
    progress=Capability("yes", "tokens and seconds of the engine, with --enable-metrics"),
    load=Capability("partly", "waits until it serves what it was started with; no other model"),
    free_memory=Capability(
        "no",
        "/flush_cache frees nothing, and /release_memory_occupation ends a server that has work",
    ),
    drain=Capability("yes", "waits until no request runs; new ones still come in"),
    canary=Capability(
        "yes", "/health_generate, which adds no load; or one token, or one embedding"
    ),
)


@dataclass(frozen=True)
class Options:
    """`api_key_file` holds what the server was given as `--api-key`, on one line.

    `canary` is what it is asked for; `health` is its own check, which any output of it answers.
    """

    api_key_file: Path | None = None
    canary: Literal["health", "completion", "embedding"] = "health"


def create(endpoint: str, options: Options, timing: Timing) -> SgLang:
    """The driver of the SGLang at `endpoint`.

    Raises:
        ConfigError: the key file cannot be used.
    """
    return SgLang(endpoint, timing.probe_timeout, api_key(options.api_key_file), options.canary)


class SgLang:
    """`ServiceDriver` for SGLang."""

    kind = "sglang"
    can_unload = False
    capabilities = _CAPABILITIES

    def __init__(
        self,
        endpoint: str,
        probe_timeout: float,
        key: str | None,
        canary: Literal["health", "completion", "embedding"],
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._api_key = key
        self._canary = canary
        self._canaries = OneAtATime()

    def probe(self) -> ServiceProbe:
        """Whether it is ready, metrics, models; one deadline for them all."""
        return with_ours(self._asked(Deadline(self._probe_timeout)), self._canaries)

    def _asked(self, left: Deadline) -> ServiceProbe:
        try:
            ready = self._get("/ready", left)
            if ready.status == 503 and (why := self._not_ready(left)) is not None:
                return why
            # Versions before /ready have none; whether they serve their models then tells.
            if ready.status not in (200, 404, 503):
                return ServiceProbe("error", f"GET /ready answered HTTP {ready.status}")
            engine, _ = _METRICS.ask(lambda: self._get("/metrics", left), self._canaries)
            models = models_in(
                self._get("/v1/models", left, self._api_key), "SGLang", self._api_key
            )
        except ServiceRefused as error:
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        return replace(engine, models=models)

    def load(self, model: str, timeout: float) -> None:
        """Wait until it serves `model`: it loads its model when it starts, and no other."""
        wait_until_served(self.probe, model, "SGLang", timeout)

    def unload(self, model: str, timeout: float) -> None:  # noqa: ARG002 - the contract
        """There is no safe way: memory is allocated once, at the start."""
        raise ServiceError(f"SGLang cannot unload {model}; only stopping it frees memory")

    def canary(self, model: str, timeout: float) -> float:
        """Its own check of a token, or a request of one; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        with self._canaries.wait(timeout) as left:
            if self._canary == "health":
                self._check_itself(left)
            else:
                what: Canary = self._canary
                ask(self._endpoint, model, what, "SGLang", timeout=left, key=self._api_key)
        return clock.monotonic() - started

    def _check_itself(self, timeout: float) -> None:
        clock = SystemClock()
        asked = clock.monotonic()
        answer = http.call("GET", self._endpoint + "/health_generate", timeout=timeout)
        if answer.status == 200:
            return
        why = f"GET /health_generate answered HTTP {answer.status}"
        if answer.status == 503 and clock.monotonic() - asked >= _LOOKED_IN_VAIN:
            # A long prompt keeps it as silent as a hang: it says no more than our own timeout would.
            raise ServiceTimeout(f"{why}: its engine put nothing out meanwhile")
        raise ServiceError(why)

    def _not_ready(self, left: Deadline) -> ServiceProbe | None:
        """Why `/ready` says no; None where it is only that it did not look at itself for a while.

        It is asked for a token by this, and one that starts or ends says so at once.
        """
        try:
            health = self._get("/health", left)
        except ServiceTimeout:
            why = "it takes no requests: it was paused, or its engine does not answer its own check"
            return ServiceProbe("silent", why)
        if health.status == 503:
            return ServiceProbe("loading", "it starts, or ends (GET /health answered HTTP 503)")
        if health.status != 200:
            return ServiceProbe("error", f"GET /health answered HTTP {health.status}")
        return None

    def _get(self, path: str, left: Deadline, key: str | None = None) -> http.Answer:
        """The key goes only to what asks for one."""
        return http.call("GET", self._endpoint + path, timeout=left.seconds(), token=key)
