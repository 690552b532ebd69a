"""Triton Inference Server (facts: its HTTP server and core, version 2.73).

Models are loaded and unloaded only with `--model-control-mode=explicit`. A load of a model that is
loaded loads it anew, so that is looked at first. An unload turns new requests away at once and ends
when those in work have; whether it has, the index says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from prometheus_client.samples import Sample

from remediator import http
from remediator.clock import SystemClock
from remediator.config import Timing
from remediator.errors import ConfigError, ServiceError, ServiceRefused, ServiceTimeout
from remediator.services._calls import Deadline, api_key, check_address, count, message
from remediator.services._canaries import OneAtATime
from remediator.services._prometheus import read_samples, total, whole
from remediator.services.base import Capabilities, Capability, LoadedModel, ServiceProbe
from remediator.waiting import wait_until

_RUNNING = "vllm:num_requests_running"
_WAITING = "nv_inference_pending_request_count"
# What moves with each step of a vLLM in Triton.
_STEPS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
)
# Batches that other backends have carried out.
_BATCHES = "nv_inference_exec_count"
_NAMES = frozenset((_RUNNING, _WAITING, _BATCHES, *_STEPS))
_POLL = 0.2
_ONE_TOKEN = {"text_input": "ping", "parameters": {"stream": False, "max_tokens": 1}}
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_NO_METRICS = Capability("no", "options.metrics_url is not set")
_NOT_EXPLICIT = Capability(
    "no", "options.model_control is not explicit, as the server would have to be"
)
_CAPABILITIES = Capabilities(
    models=Capability("yes", "the repository index: those that are ready"),
    demand=Capability("partly", "what waits; what runs only with the vLLM backend"),
    progress=Capability("yes", "batches carried out, or the steps of the vLLM backend"),
    load=Capability("yes", "the model repository's load, unless it is there already"),
    free_memory=Capability(
        "yes", "the model repository's unload; requests in work end, new ones are turned away"
    ),
    drain=Capability("partly", "with the vLLM backend; no other says what runs"),
    canary=Capability("yes", "one generate request, or the one in options.canary_request"),
)


@dataclass(frozen=True)
class Options:
    """`model_control` is what the server was started with as `--model-control-mode`.

    `restricted_header` and the file of its value are those of its `--http-restricted-api`; they are
    sent with each request but those of health. The body `canary_request`, or else one that generates
    a token, goes to `canary_path` of the model.
    """

    metrics_url: str = ""
    model_control: Literal["none", "explicit"] = "none"
    restricted_header: str = ""
    restricted_value_file: Path | None = None
    canary_path: Literal["generate", "infer"] = "generate"
    canary_request: Mapping[str, Any] = field(default_factory=dict)


def create(endpoint: str, options: Options, timing: Timing) -> Triton:
    """The driver of the Triton at `endpoint`.

    Raises:
        ConfigError: an option cannot be used.
    """
    check_address(options.metrics_url, "metrics_url")
    if bool(options.restricted_header) != (options.restricted_value_file is not None):
        raise ConfigError("options.restricted_header and restricted_value_file go together")
    if options.restricted_header and not _HEADER.fullmatch(options.restricted_header):
        raise ConfigError(f"options.restricted_header is no header: {options.restricted_header!r}")
    return Triton(endpoint, timing.probe_timeout, options)


class Triton:
    """`ServiceDriver` for Triton."""

    kind = "triton"

    def __init__(self, endpoint: str, probe_timeout: float, options: Options) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._probe_timeout = probe_timeout
        self._options = options
        value = api_key(options.restricted_value_file)
        self._headers = {} if value is None else {options.restricted_header: value}
        self._canaries = OneAtATime()

    @property
    def can_unload(self) -> bool:
        """Only in explicit mode."""
        return self._options.model_control == "explicit"

    @property
    def capabilities(self) -> Capabilities:
        """What it can, as it was started."""
        found = _CAPABILITIES
        if not self.can_unload:
            waits = Capability("partly", "waits until a model that it was started with is ready")
            found = replace(found, load=waits, free_memory=_NOT_EXPLICIT)
        if not self._options.metrics_url:
            found = replace(found, demand=_NO_METRICS, progress=_NO_METRICS, drain=_NO_METRICS)
        return found

    def probe(self) -> ServiceProbe:
        """Health, the index of models, metrics; one deadline for them all."""
        left = Deadline(self._probe_timeout)
        try:
            live = http.call("GET", self._endpoint + "/v2/health/live", timeout=left.seconds())
            if live.status not in (200, 403):
                return ServiceProbe("error", f"GET /v2/health/live answered HTTP {live.status}")
            ready = http.call("GET", self._endpoint + "/v2/health/ready", timeout=left.seconds())
            index = self._index(left)
        except ServiceRefused as error:
            return ServiceProbe("refused", str(error))
        except ServiceTimeout as error:
            return ServiceProbe("silent", str(error))
        except ServiceError as error:
            return ServiceProbe("error", str(error))
        models = tuple(LoadedModel(name, None) for name, one in index.items() if one[0] == "READY")
        probe = ServiceProbe("ready", f"{len(models)} model(s) ready", models)
        if ready.status not in (200, 403):
            probe = replace(probe, **_not_ready(index))
        return self._with_metrics(probe, left)

    def load(self, model: str, timeout: float) -> None:
        """Load `model` where it is not there; in another mode wait until it is ready."""
        left = Deadline(timeout)
        if self._state(model, left)[0] != "READY" and self.can_unload:
            self._order(model, "load", {}, left)

        def is_ready() -> bool:
            return self._state(model, left)[0] == "READY"

        if not wait_until(SystemClock(), left.seconds(), is_ready, poll=_POLL):
            state, why = self._state(model, left)
            raise ServiceTimeout(f"{model} is not ready in time: it is {state}{why and ': ' + why}")

    def unload(self, model: str, timeout: float) -> None:
        """Unload `model` and what was loaded along with it, and see that it is gone.

        It would end the requests in work first, but turn new ones away meanwhile: so a model that is
        seen to be in use is waited for.
        """
        if not self.can_unload:
            raise ServiceError(
                f"Triton cannot unload {model} unless it runs with --model-control-mode=explicit; "
                "then set options.model_control"
            )
        left = Deadline(timeout)

        def is_idle() -> bool:
            return not self._in_use(model, left)

        if not wait_until(SystemClock(), left.seconds(), is_idle, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; it is in use")
        # The parts of an ensemble hold its memory.
        self._order(model, "unload", {"parameters": {"unload_dependents": True}}, left)

        def is_gone() -> bool:
            return self._state(model, left)[0] == "UNAVAILABLE"

        if not wait_until(SystemClock(), left.seconds(), is_gone, poll=_POLL):
            raise ServiceTimeout(f"{model} is still loaded; most likely it is in use")

    def canary(self, model: str, timeout: float) -> float:
        """The configured request; never two canaries at once."""
        clock = SystemClock()
        started = clock.monotonic()
        path = f"/v2/models/{quote(model, safe='')}/{self._options.canary_path}"
        with self._canaries.wait(timeout) as left:
            answer = self._post(path, self._options.canary_request or _ONE_TOKEN, left)
        if answer.status != 200:
            raise self._failed("the canary", answer)
        raw = answer.json()
        if not isinstance(raw, dict) or raw.get("error") or raw.get("model_name") != model:
            raise ServiceError("the canary was not answered as Triton does")
        return clock.monotonic() - started

    def _index(self, left: Deadline) -> dict[str, tuple[str, str]]:
        """State and reason of each model; of several versions the one that is ready.

        Raises:
            ServiceError: it refused, or did not answer as Triton does.
        """
        answer = self._post("/v2/repository/index", {}, left.seconds())
        if answer.status != 200:
            raise self._failed("the model repository's index", answer)
        raw = answer.json()
        if not isinstance(raw, list) or not all(
            isinstance(one, dict) and isinstance(one.get("name"), str) for one in raw
        ):
            raise ServiceError("the model repository's index is not as Triton gives it")
        found: dict[str, tuple[str, str]] = {}
        for one in raw:
            # One that was never loaded has its name only.
            state = (str(one.get("state", "UNAVAILABLE")), str(one.get("reason", "unloaded")))
            if found.get(one["name"], ("", ""))[0] != "READY":
                found[one["name"]] = state if state[0] != "READY" else ("READY", "")
        return found

    def _state(self, model: str, left: Deadline) -> tuple[str, str]:
        index = self._index(left)
        if model not in index:
            raise ServiceError(f"its repository has no model {model}; it has: {', '.join(index)}")
        return index[model]

    def _in_use(self, model: str, left: Deadline) -> bool:
        """Whether requests of `model` are seen to wait or run; what cannot be seen counts as idle."""
        samples = self._samples(left) if self._options.metrics_url else ()
        names = (_RUNNING, _WAITING)
        return any(
            one.value > 0
            for one in samples
            if one.name in names and one.labels.get("model") == model
        )

    def _order(self, model: str, verb: str, body: Mapping[str, Any], left: Deadline) -> None:
        path = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
        answer = self._post(path, body, left.seconds())
        if answer.status != 200:
            raise self._failed(f"the {verb} of {model}", answer)

    def _with_metrics(self, probe: ServiceProbe, left: Deadline) -> ServiceProbe:
        if not self._options.metrics_url:
            return probe
        try:
            samples = self._samples(left)
        except ServiceError as error:
            return replace(probe, detail=f"{probe.detail}; it gives no metrics: {error}")
        running, waiting = whole(samples, _RUNNING), whole(samples, _WAITING)
        steps = [value for name in _STEPS if (value := total(samples, name)) is not None]
        return replace(
            probe,
            detail=f"{probe.detail}; {count(running)} running, {count(waiting)} waiting",
            requests_running=running,
            requests_waiting=waiting,
            progress=sum(steps) if steps else total(samples, _BATCHES),
        )

    def _samples(self, left: Deadline) -> tuple[Sample, ...]:
        answer = http.call("GET", self._options.metrics_url, timeout=left.seconds())
        return read_samples(answer.body, _NAMES) if answer.status == 200 else ()

    def _post(self, path: str, body: Mapping[str, Any], timeout: float) -> http.Answer:
        url = self._endpoint + path
        return http.call("POST", url, timeout=timeout, body=body, headers=self._headers)

    def _failed(self, what: str, answer: http.Answer) -> ServiceError:
        hint = ""
        if answer.status == 403:
            hint = "; see options.restricted_header and restricted_value_file"
        return ServiceError(f"{what} failed (HTTP {answer.status}): {message(answer)}{hint}")


def _not_ready(index: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """What the server's own `ready` waits for: every model that is not unloaded on purpose."""
    if loading := [name for name, (state, _) in index.items() if state == "LOADING"]:
        return {"state": "loading", "detail": f"it loads {', '.join(loading)}"}
    failed = [
        f"{name}: {why or state}"
        for name, (state, why) in index.items()
        if state != "READY" and why != "unloaded"
    ]
    why = "; ".join(failed) or "no model says why: a backend's own process may have died"
    return {"state": "error" if index else "loading", "detail": f"it is not ready: {why}"}
