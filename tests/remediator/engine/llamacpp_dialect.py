"""llama-server as its HTTP interface shows it: with one model, and as a router of several."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.services import ServiceDriver
from tests.remediator.engine.vllm_server import FakeVllm, fake_vllm

# Lines as llama-server 0.1.0-dev (7e4c0a9) gives them, shortened.
PAGE = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 10
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 401
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 782
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds 2555.56
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 2
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1
"""
IDLE = PAGE.replace("processing 1", "processing 0").replace("deferred 2", "deferred 0")
LOADING = {"message": "Loading model", "type": "unavailable_error", "code": 503}
NO_METRICS = {"code": 501, "message": "This server does not support metrics endpoint."}
NOT_LOADED = {"code": 400, "message": "model is not loaded", "type": "invalid_request_error"}
CUT_OFF = {
    "code": 500,
    "message": "The model produced output that does not match the expected Content-only format",
    "type": "server_error",
}
MODELS = {"object": "list", "data": [{"id": "qwen", "aliases": ["qwen"], "object": "model"}]}
COMPLETION = {"choices": [{"text": "!", "index": 0}], "object": "text_completion"}
CANARY = "/v1/completions?autoload=false"


class Answers(dict[str, Any]):
    """Of which some are made when they are asked for."""

    def get(self, path: str, default: Any = None) -> Any:
        answer = super().get(path, default)
        return answer() if callable(answer) else answer


def of_model(path: str, name: str) -> str:
    return f"{path}?model={name}&autoload=false"


def driver(url: str, *, timeout: float = 20.0, **options: object) -> ServiceDriver:
    config = ServiceConfig("llama", "llamacpp", url, {}, options=options)
    return services.create(config, Timing(probe_timeout=timeout))


@contextlib.contextmanager
def llama_server() -> Iterator[FakeVllm]:
    """A llama-server with one model."""
    with fake_vllm() as server:
        server.answers = Answers(
            {
                "/health": (200, {"status": "ok"}),
                "/props": (200, {"model_alias": "qwen", "is_sleeping": False}),
                "/metrics": (200, PAGE),
                "/slots": (200, [{"id": 0, "is_processing": True}, {"is_processing": False}]),
                "/v1/models": (200, MODELS),
                CANARY: (200, COMPLETION),
            }
        )
        yield server


class Router:
    """A router's models; what is ordered happens, after `looks` more looks."""

    def __init__(self, fake: FakeVllm) -> None:
        self.states: dict[str, dict[str, Any]] = {
            name: {"value": "unloaded"} for name in ("a", "b", "my model")
        }
        self.looks = 1
        self.broken: set[str] = set()
        self._fake = fake
        self._ordered: list[tuple[int, str, dict[str, Any]]] = []
        fake.answers["/props"] = (200, {"role": "router", "models_autoload": True})
        fake.answers["/models"] = self._list
        fake.answers["/models/load"] = lambda: self._order("loading", "loaded")
        fake.answers["/models/unload"] = lambda: self._order("loaded", "unloaded")
        for name in self.states:
            self.page(name, IDLE)
        fake.answers["/metrics"] = (400, {"error": {"message": "model name is missing"}})
        fake.answers.pop("/slots", None)

    def page(self, name: str, page: str) -> None:
        encoded = name.replace(" ", "+")
        self._fake.answers[of_model("/metrics", encoded)] = (200, page)

    def has(self, **states: str) -> None:
        for name, value in states.items():
            self.states[name] = {"value": value}

    def _list(self) -> tuple[int, object]:
        self._ordered = [(left - 1, name, state) for left, name, state in self._ordered]
        for left, name, state in self._ordered:
            if left < 0:
                self.states[name] = state
        self._ordered = [one for one in self._ordered if one[0] >= 0]
        data = [{"id": name, "status": state} for name, state in self.states.items()]
        return 200, {"object": "list", "data": data}

    def _order(self, now: str, then: str) -> tuple[int, object]:
        name = json.loads(self._fake.asked[-1][2])["model"]
        self.states[name] = {"value": now}
        last: dict[str, Any] = {"value": then}
        if name in self.broken and then == "loaded":
            last = {"value": "unloaded", "exit_code": 1, "failed": True}
        self._ordered.append((self.looks, name, last))
        return 200, {"success": True}
