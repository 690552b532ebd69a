"""vLLM (facts: its V1 engine, version 0.33).

`/health` looks only at whether the engine process has died: it answers 200 while the engine hangs.
What the engine does is in its metrics, which `--disable-log-stats` takes away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prometheus_client.samples import Sample

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key
from remediator.services._canaries import OneAtATime
from remediator.services._engine import EngineMetrics, with_ours
from remediator.services._openai import Canary, ask, models_in, wait_until_served
from remediator.services.base import Capabilities, Capability, ServiceProbe

_SLEEP_STATE = "vllm:engine_sleep_state"
_METRICS = EngineMetrics(
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    # All three move while requests are worked on, not only when one ends.
    progress=(
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:iteration_tokens_total_count",
    ),
    first_tokens="vllm:time_to_first_token_seconds",
    others=(_SLEEP_STATE,),
)
_CAPABILITIES = Capabilities(
    models=Capability("yes", "GET /v1/models: those that it was started with"),
    demand=Capability("yes", "from /metrics, unless it runs with --disable-log-stats"),
    progress=Capability("yes", "tokens and engine steps, unless --disable-log-stats"),
    load=Capability("partly", "waits until it serves what it was started with; no other model"),
    free_memory=Capability(
        "no", "its memory is allocated once, at the start; /reset_prefix_cache frees none of it"
    ),
    drain=Capability("yes", "waits until no request runs; new ones still come in"),
    canary=Capability("yes", "one token, or one embedding"),
)


@dataclass(frozen=True)
class Options:
    """`api_key_file` holds what the server was given as `--api-key`, on one line.

    `canary` is what it is asked for: a server of embeddings completes nothing.
    """

    api_key_file: Path | None = None
    canary: Literal["completion", "embedding"] = "completion"


def create(endpoint: str, options: Options, timing: Timing) -> Vllm:
    """The driver of the vLLM at `endpoint`.

    Raises:
        ConfigError: the key file cannot be used.
    """
    key = api_key(options.api_key_file)
    return Vllm(endpoint, timing.probe_timeout, key, embeds=options.canary == "embedding")


class Vllm:
    """`ServiceDriver` for vLLM."""

    kind = "vllm"
    can_unload = False
    capabilities = _CAPABILITIES

    def __init__(
        self, endpoint: str, probe_timeout: float, api_key: str | None, *, embeds: bool
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._api_key = api_key
        self._embeds = embeds
        self._canaries = OneAtATime()
        self._may_have_dev_mode = True

    def probe(self) -> ServiceProbe:
        """Health, metrics, models, and whether somebody paused it; one deadline for them all."""
        return with_ours(self._asked(Deadline(self._probe_timeout)), self._canaries)

    def _asked(self, left: Deadline) -> ServiceProbe:
        try:
            health = self._get("/health", left)
        except ServiceRefused as error:
            # What comes up next may have been started in another way.
            self._may_have_dev_mode = True
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        if health.status == 503 and not health.body:
            # The engine process has died, and this server was told not to end with it. A proxy that
            # turns requests away says something.
            return ServiceProbe("dead", "its engine has died (GET /health answered HTTP 503)")
        if health.status != 200:
            return ServiceProbe("error", f"GET /health answered HTTP {health.status}")
        engine = self._engine(left)
        try:
            models = models_in(self._get("/v1/models", left), "vLLM", self._api_key)
        except ServiceTimeout as error:
            return replace(engine, state="silent", detail=f"GET /v1/models: {error}")
        except ServiceError as error:
            return replace(engine, state="error", detail=str(error))
        engine = replace(engine, models=models)
        if engine.state == "ready" and (paused := self._paused(left)):
            return replace(engine, state="sleeping", detail=paused)
        return engine

    def load(self, model: str, timeout: float) -> None:
        """Wait until it serves `model`: it loads its models when it starts, and no others."""
        wait_until_served(self.probe, model, "vLLM", timeout)

    def unload(self, model: str, timeout: float) -> None:  # noqa: ARG002 - the contract
        """There is no such thing: memory is allocated once, at the start."""
        raise ServiceError(f"vLLM cannot unload {model}; only stopping it frees memory")

    def canary(self, model: str, timeout: float) -> float:
        """One token, or one embedding; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        what: Canary = "embedding" if self._embeds else "completion"
        with self._canaries.wait(timeout) as left:
            ask(self._endpoint, model, what, "vLLM", timeout=left, key=self._api_key)
        return clock.monotonic() - started

    def _get(self, path: str, left: Deadline) -> http.Answer:
        return http.call(
            "GET", self._endpoint + path, timeout=left.seconds(), token=self._key_for(path)
        )

    def _key_for(self, path: str) -> str | None:
        """The key goes only to what asks for one."""
        return self._api_key if path.startswith("/v1/") else None

    def _engine(self, left: Deadline) -> ServiceProbe:
        """What the metrics say; nothing where there are none or they cannot be read."""
        probe, samples = _METRICS.ask(lambda: self._get("/metrics", left), self._canaries)
        return replace(probe, state="sleeping") if _sleeps(samples) else probe

    def _paused(self, left: Deadline) -> str | None:
        """Whether somebody paused it or sent it to sleep; only a server in dev mode can tell."""
        for path, key in (("/is_sleeping", "is_sleeping"), ("/is_paused", "is_paused")):
            if not self._may_have_dev_mode:
                return None
            try:
                answer = self._get(path, left)
                raw = answer.json() if answer.status == 200 else {}
            except ServiceError:
                return None
            if answer.status == 404 and key == "is_sleeping":
                self._may_have_dev_mode = False
            if isinstance(raw, dict) and raw.get(key) is True:
                return f"GET {path} says {key}"
        return None


def _sleeps(samples: tuple[Sample, ...]) -> bool:
    """Whether every engine is put to sleep; one without such a metric is awake."""
    awake = [
        sample.value
        for sample in samples
        if sample.name == _SLEEP_STATE and sample.labels.get("sleep_state") == "awake"
    ]
    return bool(awake) and not any(awake)
