"""Servers that speak as the real ones do, each written from the source of the version it names.

A dialect is a class with `answer(request)`; what was asked of it is in `asked`. One that is to hang
waits on `ends`, which is set when the server is taken away.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any

    @property
    def bearer(self) -> str | None:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None


@dataclass
class Dialect:
    """`forced[path]` is answered instead; `hangs` holds paths that are not answered at all."""

    asked: list[Request] = field(default_factory=list)
    forced: dict[str, tuple[int, Any]] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    ends: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, request: Request) -> tuple[int, Any]:
        raise NotImplementedError

    @property
    def paths(self) -> list[str]:
        return [one.path for one in self.asked]

    @property
    def writes(self) -> list[Request]:
        return [one for one in self.asked if one.method != "GET"]


class _Handler(BaseHTTPRequestHandler):
    dialect: Dialect

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=json.loads(raw) if raw else None,
        )
        one = self.dialect
        one.asked.append(request)
        if request.path in one.hangs:
            one.ends.wait(20)
            return
        status, said = one.forced.get(request.path) or one.answer(request)
        body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served(dialect: Dialect) -> Iterator[str]:
    """The address at which `dialect` answers."""
    handler = type("Handler", (_Handler,), {"dialect": dialect})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        dialect.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield dialect.url
        finally:
            dialect.ends.set()
            server.shutdown()
            thread.join(5)


def fail(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "error", "code": status}}


@dataclass
class OpenAi(Dialect):
    """The models and requests of OpenAI's API, as several servers have them."""

    models: dict[str, str | None] = field(default_factory=lambda: {"qwen": None})
    key: str | None = None
    tokens: int = 100
    page: str | None = None

    def answer(self, request: Request) -> tuple[int, Any]:
        if self.key is not None and request.bearer != self.key:
            return fail(401, "Unauthorized")
        if request.path == "/v1/models":
            listed = [{"id": name, "parent": up} for name, up in self.models.items()]
            return 200, {"object": "list", "data": listed}
        if request.path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
            model = request.body.get("model")
            if model not in self.models:
                return fail(404, f"The model `{model}` does not exist.")
            self.tokens += 1
            held = "data" if request.path == "/v1/embeddings" else "choices"
            return 200, {held: [{"index": 0}]}
        if request.path == "/metrics" and self.page is not None:
            return 200, self.page.format(tokens=self.tokens)
        return 404, {"detail": "Not Found"}


SGLANG_PAGE = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{{engine_type="unified",model_name="qwen",dp_rank="0"}} {running}.0
sglang:num_running_reqs{{engine_type="unified",model_name="qwen",dp_rank="1"}} 0.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{{engine_type="unified",model_name="qwen",dp_rank="0"}} {waiting}.0
# TYPE sglang:realtime_tokens_total counter
sglang:realtime_tokens_total{{engine_type="unified",mode="prefill_compute",model_name="qwen"}} 40.0
sglang:realtime_tokens_total{{engine_type="unified",mode="decode",model_name="qwen"}} {tokens}.0
# TYPE sglang:forward_execution_seconds_total counter
sglang:forward_execution_seconds_total{{category="decode",model_name="qwen"}} 1.5
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{{model_name="qwen"}} 7.0
"""


@dataclass
class SgLang(OpenAi):
    """SGLang 0.5.23: entrypoints/http_server.py, utils/auth.py, observability/metrics_collector.py.

    `status` is its `server_status`; `engine` whether the scheduler puts anything out.
    """

    status: str = "Up"
    paused: bool = False
    engine: bool = True
    metrics: bool = True
    running: int = 0
    waiting: int = 0

    def answer(self, request: Request) -> tuple[int, Any]:
        path = request.path
        if path == "/ready":
            return (200 if self.status == "Up" and not self.paused else 503), ""
        if path in ("/health", "/health_generate"):
            if self.status == "Starting":
                return 503, ""
            if not self.engine or self.paused:
                # HEALTH_CHECK_TIMEOUT, of which a test waits for no more than the client does.
                self.ends.wait(20)
                return 503, ""
            # It looks again a second later at the earliest; nobody's test needs to wait for that.
            self.status = "Up"
            self.tokens += 1
            return 200, ""
        if path == "/metrics":
            if not self.metrics:
                return 404, {"detail": "Not Found"}
            return 200, SGLANG_PAGE.format(
                running=self.running, waiting=self.waiting, tokens=self.tokens
            )
        if path == "/release_memory_occupation" and (self.running or self.waiting):
            raise AssertionError("it would have killed the scheduler")
        return super().answer(request)
