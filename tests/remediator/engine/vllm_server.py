"""A vLLM by the page: what it answers is set, path by path."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Lines as a vLLM 0.33 with two data-parallel engines gives them, shortened.
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="qwen"} 2.0
vllm:num_requests_running{engine="1",model_name="qwen"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="qwen"} 5.0
vllm:num_requests_waiting{engine="1",model_name="qwen"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="qwen",reason="capacity"} 5.0
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="qwen",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="qwen",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="0",model_name="qwen",sleep_state="discard_all"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.31
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="qwen"} 1000.0
vllm:prompt_tokens_created{engine="0",model_name="qwen"} 1.7637e+09
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="qwen"} 200.0
vllm:generation_tokens_total{engine="1",model_name="qwen"} 30.0
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="qwen"} 150.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="qwen"} 160.0
vllm:iteration_tokens_total_count{engine="0",model_name="qwen"} 160.0
vllm:iteration_tokens_total_sum{engine="0",model_name="qwen"} 1200.0
"""
PROGRESS = 1000 + 230 + 160
MODELS = {"object": "list", "data": [{"id": "qwen", "object": "model", "parent": None}]}
COMPLETION = {"object": "text_completion", "choices": [{"index": 0, "text": "!"}]}
HANGS = object()


class FakeVllm:
    """`answers[path]` is a status and a body, or `HANGS`; what it was asked is in `asked`."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/health": (200, ""),
            "/metrics": (200, PAGE),
            "/v1/models": (200, MODELS),
            "/v1/completions": (200, COMPLETION),
        }
        self.asked: list[tuple[str, str | None, bytes]] = []
        self.ends = threading.Event()
        self.url = ""

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@contextlib.contextmanager
def fake_vllm() -> Iterator[FakeVllm]:
    fake = FakeVllm()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.asked.append((self.path, self.headers.get("Authorization"), body))
            answer = fake.answers.get(self.path, (404, {"error": {"message": "Not Found"}}))
            if answer is HANGS:
                fake.ends.wait(20)
                return
            status, said = answer
            raw = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(raw)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            fake.ends.set()
            server.shutdown()
            thread.join(5)
