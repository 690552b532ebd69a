"""Ray Serve as a real Ray 2.60.0 answered on 2026-11-22: dashboard, proxy and the node's metrics.

The shapes are recorded, with what nobody reads left out; `tests/remediator/drivers` holds the driver
against the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.remediator.engine.dialects import OpenAi, Request

NODE = "eeb3f746912dbde01130051baf4ebb61877c4b228ba66f9c583f9b65"
# Labels that each sample has, shortened.
_OF = 'Component="core_worker",NodeAddress="192.0.2.2",Version="2.60.0",WorkerId="{worker}"'
_PAGE = """\
# TYPE ray_serve_replica_processing_queries gauge
ray_serve_replica_processing_queries{{{of},application="llm",replica="{replica}"}} {running}.0
ray_serve_replica_processing_queries{{{of},application="two",deployment="other",replica="5vsg4tfs"}} 9.0
# TYPE ray_serve_deployment_queued_queries gauge
ray_serve_deployment_queued_queries{{{proxy},application="llm",handle="1w1vnv99"}} {waiting}.0
ray_serve_deployment_queued_queries{{{proxy},application="two",deployment="other",handle="s3c168s5"}} 9.0
# TYPE ray_serve_deployment_request_counter_total counter
ray_serve_deployment_request_counter_total{{{of},application="llm",deployment="LLMServer"}} 12.0
"""
_ENGINE = """\
# TYPE ray_vllm_generation_tokens_total counter
ray_vllm_generation_tokens_total{{{of},model_name="qwen"}} {tokens}.0
ray_vllm_generation_tokens_total{{{dead},model_name="qwen"}} 5000.0
"""


@dataclass
class RayServe(OpenAi):
    """Two applications; `llm` is the one with an OpenAI API, under the route `/llm`."""

    token: str | None = None
    dashboard: int = 200
    statuses: dict[str, str] = field(default_factory=lambda: {"llm": "RUNNING", "two": "RUNNING"})
    messages: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, list[str]] = field(
        default_factory=lambda: {"llm": ["RUNNING"], "two": ["RUNNING"]}
    )
    wanted: dict[str, int] = field(default_factory=lambda: {"llm": 1, "two": 1})
    shares: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "llm": {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5}},
            "two": {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.75}},
        }
    )
    nodes: dict[str, str] = field(default_factory=dict)
    proxies: list[str] = field(default_factory=lambda: ["HEALTHY"])
    running: int = 0
    waiting: int = 0
    vllm: bool = True
    workers: dict[str, str] = field(default_factory=dict)
    lists_the_dead: bool = True
    gone: dict[str, list[str]] = field(default_factory=dict)
    killed: dict[str, float] = field(default_factory=dict)

    def kill(self, name: str, replacement: str, at: float | None) -> None:
        """Ray loses the worker of an application and starts another; `at`: killed for memory."""
        worker = self.workers.get(name, f"worker-{name}")
        self.gone.setdefault(name, []).append(worker)
        self.workers[name] = replacement
        if at is not None:
            self.killed[worker] = at

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path.startswith("/api/"):
            assert request.method == "GET", "nothing at the dashboard is ever changed"
            if self.token is not None and request.bearer != self.token:
                return 401, "Unauthorized: Missing authentication token"
            if request.path == "/api/v0/workers":
                return 200, self._state(request)
            if request.path != "/api/serve/applications/":
                return 404, "404: Not Found"
            if self.dashboard != 200:
                return self.dashboard, "Failed to get a response from the controller."
            return 200, self.details()
        if request.path == "/-/healthz":
            return 200, "success"
        if request.path == "/metrics":
            return 200, self._metrics()
        if request.path.startswith("/llm/"):
            shorter = Request(
                request.method,
                request.path.removeprefix("/llm"),
                request.query,
                request.headers,
                request.body,
            )
            return super().answer(shorter)
        return 404, f"Path '{request.path}' not found."

    def details(self) -> dict[str, Any]:
        return {
            "controller_info": {"node_id": NODE, "actor_name": "SERVE_CONTROLLER_ACTOR"},
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": 18000},
            "proxies": {
                f"{NODE}{number}": {"node_id": NODE, "status": status}
                for number, status in enumerate(self.proxies)
            },
            "applications": {name: self._application(name) for name in self.statuses},
            "target_capacity": None,
        }

    def _state(self, request: Request) -> dict[str, Any]:
        """dashboard/modules/state/state_head.py and state_aggregator.py."""
        asked = {
            key: request.query.get(f"filter_{key}") for key in ("keys", "predicates", "values")
        }
        assert (asked["keys"], asked["predicates"]) == ("worker_id", "=")
        assert request.query["detail"] == "1", "end_time_ms is a detail"
        rows = [
            {
                "worker_id": worker,
                "is_alive": False,
                "worker_type": "WORKER",
                "exit_type": "NODE_OUT_OF_MEMORY",
                "node_id": NODE,
                "ip": "192.0.2.2",
                "pid": 25723,
                "exit_detail": "1 worker(s) were killed due to the node running low on memory. ...",
                "worker_launch_time_ms": int(at * 1000) - 60_000,
                "worker_launched_time_ms": int(at * 1000) - 59_000,
                "start_time_ms": int(at * 1000) - 58_000,
                "end_time_ms": int(at * 1000),
            }
            for worker, at in self.killed.items()
            if worker == asked["values"]
        ]
        listed = {"total": 9, "num_after_truncation": 9, "num_filtered": len(rows), "result": rows}
        return {"result": True, "msg": "", "data": {"result": listed}}

    def _application(self, name: str) -> dict[str, Any]:
        deployment = {"llm": "LLMServer:qwen"}.get(name, "other")
        return {
            "name": name,
            "route_prefix": f"/{name}",
            "status": self.statuses[name],
            "message": self.messages.get(name, ""),
            "deployed_app_config": None,
            "source": "imperative",
            "deployments": {
                deployment: {
                    "name": deployment,
                    "status": "HEALTHY",
                    "status_trigger": "CONFIG_UPDATE_COMPLETED",
                    "message": "",
                    "deployment_config": {
                        "name": deployment,
                        "max_ongoing_requests": 5,
                        **self.shares[name],
                    },
                    "target_num_replicas": self.wanted[name],
                    "replicas": [
                        {
                            "node_id": self.nodes.get(name, NODE),
                            "worker_id": self.workers.get(name, f"worker-{name}"),
                            "replica_id": f"{name}{number}",
                            "state": state,
                            "pid": 25723 + number,
                        }
                        for number, state in enumerate(self.replicas[name])
                    ],
                    **(self._dead(name) if self.lists_the_dead else {}),
                }
            },
            "external_scaler_enabled": False,
        }

    def _dead(self, name: str) -> dict[str, Any]:
        gone = self.gone.get(name, [])[-10:]
        return {
            "recent_dead_replicas": [
                {"node_id": NODE, "worker_id": one, "replica_id": f"r-{one}", "state": "STOPPED"}
                for one in gone
            ]
        }

    def _metrics(self) -> str:
        page = _PAGE + (_ENGINE if self.vllm else "")
        return page.format(
            of=_OF.format(worker=self.workers.get("llm", "worker-llm")),
            proxy=_OF.format(worker="a-proxy"),
            dead=_OF.format(worker="worker-that-died"),
            replica="llm0",
            running=self.running,
            waiting=self.waiting,
            tokens=self.tokens,
        )
