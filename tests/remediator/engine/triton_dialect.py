"""Triton 2.73: server/src/http_server.cc, core/src/model_repository_manager, docs/protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tests.remediator.engine.dialects import Dialect, Request

_MODEL = re.compile(r"/v2/(repository/)?models/([^/]+)/(load|unload|ready|generate|infer)")


@dataclass
class Triton(Dialect):
    """`states` of the models: READY, LOADING, UNLOADING, UNAVAILABLE, or empty: never loaded.

    `looks` is how often the index is looked at until an unload is done; `busy` models stay in
    UNLOADING, as with a request that does not end.
    """

    explicit: bool = True
    states: dict[str, str] = field(default_factory=lambda: {"qwen": "READY", "ensemble": ""})
    reasons: dict[str, str] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    restricted: tuple[str, str] | None = None
    pending: dict[str, int] = field(default_factory=dict)
    running: int | None = None
    executed: int = 100
    looks: int = 1
    backend_died: bool = False
    loads: list[str] = field(default_factory=list)
    keeps_memory: bool = False
    when_changed: Any = None
    _unloading: dict[str, int] = field(default_factory=dict)

    def answer(self, request: Request) -> tuple[int, Any]:
        path = request.path
        if path == "/metrics":
            return 200, self._page()
        if path == "/v2/health/live":
            return 200, ""
        if path == "/v2/health/ready":
            return (200 if self._all_ready() else 400), ""
        if not self._may(request):
            assert self.restricted is not None
            why = f"This API is restricted, expecting header '{self.restricted[0]}'"
            return 403, {"error": why}
        if path == "/v2/repository/index":
            return self._index(request)
        found = _MODEL.fullmatch(path)
        if found is None:
            return 404, {"error": "Not Found"}
        return self._of_model(found[2], found[3], request)

    def _may(self, request: Request) -> bool:
        if self.restricted is None or not request.path.startswith("/v2/repository/"):
            return True
        name, value = self.restricted
        return request.headers.get(name.lower()) == value

    def _all_ready(self) -> bool:
        return not self.backend_died and all(
            state in ("READY", "") or self.reasons.get(name) == "unloaded"
            for name, state in self.states.items()
        )

    def _index(self, request: Request) -> tuple[int, Any]:
        if request.method != "POST":
            return 405, {"error": "Method Not Allowed"}
        for name in list(self._unloading):
            self._unloading[name] -= 1
            if self._unloading[name] <= 0 and name not in self.busy:
                del self._unloading[name]
                self._set(name, "UNAVAILABLE", "unloaded")
        listed = []
        for name, state in self.states.items():
            one = {"name": name}
            if state:
                one |= {"version": "1", "state": state}
                one |= {"reason": self.reasons[name]} if self.reasons.get(name) else {}
            listed.append(one)
        return 200, listed

    def _set(self, name: str, state: str, reason: str) -> None:
        self.states[name], self.reasons[name] = state, reason
        if self.when_changed is not None:
            self.when_changed(name, state)

    def _of_model(self, name: str, verb: str, request: Request) -> tuple[int, Any]:
        if verb in ("generate", "infer"):
            if self.states.get(name) != "READY":
                return 400, {"error": f"Request for unknown model: '{name}' is not found"}
            if "text_input" not in request.body and "inputs" not in request.body:
                return 400, {"error": "unable to parse the request"}
            self.executed += 1
            return 200, {"model_name": name, "model_version": "1", "text_output": "!"}
        if verb == "ready":
            return (200 if self.states.get(name) == "READY" else 400), ""
        if not self.explicit:
            why = "explicit model load / unload is not allowed if polling is enabled"
            return 503, {"error": why}
        if verb == "load":
            self.loads.append(name)
            if name in self.broken:
                self._set(name, "UNAVAILABLE", "Internal: CUDA out of memory")
                why = "failed to load 'broken', failed to poll from model repository"
                return 400, {"error": why}
            self._set(name, "READY", "")
            return 200, ""
        if self.states.get(name):
            self.states[name] = "UNLOADING"
            self._unloading[name] = self.looks
        return 200, ""

    def _page(self) -> str:
        lines = ["# TYPE nv_inference_exec_count counter"]
        lines += [
            f'nv_inference_exec_count{{model="{name}",version="1"}} {self.executed}'
            for name in self.states
        ]
        lines += ["# TYPE nv_inference_pending_request_count gauge"]
        lines += [
            f'nv_inference_pending_request_count{{model="{name}",version="1"}} '
            f"{self.pending.get(name, 0)}"
            for name in self.states
        ]
        if self.running is not None:
            lines += ["# TYPE vllm:num_requests_running gauge"]
            lines += [f'vllm:num_requests_running{{model="qwen",version="1"}} {self.running}']
            lines += ["# TYPE vllm:generation_tokens_total counter"]
            lines += [f'vllm:generation_tokens_total{{model="qwen",version="1"}} {self.executed}']
        return "\n".join(lines) + "\n"
