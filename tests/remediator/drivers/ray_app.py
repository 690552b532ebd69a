"""Two Ray Serve applications, run by a Python that has `ray[serve]`: PORTS of dashboard, metrics, HTTP.

The first has OpenAI's API and counts tokens under the names that a vLLM in Ray has; it has no model.
"""

import asyncio
import os
import sys
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.util.metrics import Counter

api = FastAPI()
TAGS = {"model_name": "tiny"}


@serve.deployment(
    name="LLMServer:tiny",
    ray_actor_options={"num_cpus": 0.1, "num_gpus": 0.5},
    max_ongoing_requests=2,
)
@serve.ingress(api)
class Engine:
    def __init__(self) -> None:
        self.tokens = Counter(
            "vllm_generation_tokens_total", description="tokens", tag_keys=("model_name",)
        )
        self.tokens.inc(1, TAGS)

    @api.get("/v1/models")
    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    @api.post("/v1/completions")
    async def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        for _ in range(int(body.get("max_tokens", 1))):
            await asyncio.sleep(0.01)
            self.tokens.inc(1, TAGS)
        return {"choices": [{"text": "!"}]}

    @api.post("/die")
    def die(self) -> None:
        os._exit(1)


@serve.deployment(name="other", ray_actor_options={"num_cpus": 0.1, "num_gpus": 0.75})
class Other:
    def __call__(self) -> str:
        return "x"


if __name__ == "__main__":
    dashboard, metrics, http = map(int, sys.argv[1:4])
    ray.init(
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard,
        num_cpus=2,
        # Ray believes what it is told: there need not be a card.
        num_gpus=2,
        object_store_memory=100 * 2**20,
        _metrics_export_port=metrics,
        _temp_dir=sys.argv[4],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": http})
    serve.run(Engine.bind(), name="llm", route_prefix="/llm")
    serve.run(Other.bind(), name="two", route_prefix="/two")
    # Until whoever started it closes this pipe, or ends.
    sys.stdin.read()
