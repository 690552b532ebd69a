"""A Ray Serve application that takes memory when asked, run by a Python that has `ray[serve]`.

    ray_hungry_app.py DASHBOARD METRICS HTTP FOLDER

It has OpenAI's API and no model. `max_tokens` of a million takes memory until somebody ends it, which
Ray's memory monitor does; what it takes is bounded all the same. It ends with SIGTERM, or after a while.
"""

import asyncio
import signal
import sys
from typing import Any

import ray
from fastapi import FastAPI, HTTPException
from ray import serve

api = FastAPI()
TOO_MUCH = 1_000_000
BLOCK, BLOCKS = 64 * 2**20, 160


@serve.deployment(name="LLMServer:tiny", ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class Engine:
    def __init__(self) -> None:
        self.taken: list[bytes] = []

    @api.get("/v1/models")
    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    @api.post("/v1/completions")
    async def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        if int(body.get("max_tokens", 1)) >= TOO_MUCH:
            for _ in range(BLOCKS):
                self.taken.append(b"\x01" * BLOCK)
                await asyncio.sleep(0.05)
            self.taken.clear()
            raise HTTPException(500, "nobody has ended it")
        return {"choices": [{"text": "!"}]}


def end(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    dashboard, metrics, http = map(int, sys.argv[1:4])
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.alarm(600)
    ray.init(
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=dashboard,
        num_cpus=2,
        object_store_memory=100 * 2**20,
        _metrics_export_port=metrics,
        _temp_dir=sys.argv[4],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": http})
    serve.run(Engine.bind(), name="llm", route_prefix="/llm")
    while True:
        signal.pause()
