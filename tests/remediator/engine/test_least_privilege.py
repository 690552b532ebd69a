"""What a driver asks of its server is what docs/services.md says, and nothing else."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from remediator import http, services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError
from remediator.services import ServiceDriver
from tests.remediator.engine.dialects import Dialect, OpenAi, Request, SgLang, served
from tests.remediator.engine.ray_dialect import RayServe
from tests.remediator.engine.test_capabilities import SCENES
from tests.remediator.engine.triton_dialect import Triton
from tests.test_docs import section, text

KINDS = sorted(set(services.names()) - {"ollama"})


class Ollama(Dialect):
    """As far as the driver asks: a model that is there, and goes when it is told to."""

    loaded = True

    def answer(self, request: Request) -> tuple[int, Any]:
        listed = [{"model": "qwen:latest", "size_vram": 1}] if self.loaded else []
        if request.path == "/api/ps":
            return 200, {"models": listed}
        if request.body["model"] != "qwen":
            return 404, {"error": "not found"}
        self.loaded = request.body.get("keep_alive") != 0
        return 200, {"done": True}


class Vllm(OpenAi):
    """In dev mode, and awake."""

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path in ("/health", "/is_sleeping", "/is_paused"):
            return 200, {request.path[1:]: False}
        return super().answer(request)


class LlamaCpp(OpenAi):
    """Without `--metrics`."""

    def answer(self, request: Request) -> tuple[int, Any]:
        said = {"/health": {"status": "ok"}, "/props": {}, "/slots": [{"is_processing": False}]}
        if request.path in said:
            return 200, said[request.path]
        return super().answer(request)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Method and path of each request that leaves."""
    seen: set[str] = set()
    call = http.call

    def noted(method: str, url: str, **more: Any) -> http.Answer:
        seen.add(f"{method} {urlsplit(url).path}")
        return call(method, url, **more)

    monkeypatch.setattr(http, "call", noted)
    return seen


def allowed(kind: str) -> set[str]:
    """The requests in the line of the page about this driver."""
    lines = section(text("services.md"), "Least privilege").splitlines()
    (line,) = (line for line in lines if line.startswith(f"* `{kind}`"))
    return set(re.findall(r"`((?:GET|POST) /[^`]*)`", line))


def matches(request: str, line: str) -> bool:
    """Whether a request is this one of the page."""
    verb, path = line.split(" ", 1)
    # The proxy of an application has its route in front.
    regex = re.escape(path).replace("MODEL", "[^/]+")
    return re.fullmatch(rf"{verb} (?:/llm)?{regex}", request) is not None


def use(driver: ServiceDriver, model: str) -> None:
    """Everything that can be asked of a driver, also in vain."""
    for _ in range(2):
        driver.probe()
        for what in (driver.canary, driver.unload, driver.load):
            for name in (model, "nobody"):
                with contextlib.suppress(ServiceError):
                    what(name, 0.3)


def others(kind: str) -> Iterator[tuple[Dialect, dict[str, object]]]:
    """Servers with other canaries, those that are not well, and those that say more or less."""
    canaries = {
        "vllm": ("completion", "embedding"),
        "sglang": ("completion", "embedding"),
        "openai": ("completion", "embedding", "chat"),
    }
    for canary in canaries.get(kind, ()):
        yield {"vllm": Vllm, "sglang": SgLang, "openai": OpenAi}[kind](), {"canary": canary}
    if kind == "sglang":
        yield SgLang(status="Down"), {}
    if kind == "llamacpp":
        yield LlamaCpp(), {"canary": "embedding"}
    if kind == "triton":
        yield Triton(), {"canary_path": "infer"}


def other_rays(url: str) -> Iterator[ServiceDriver]:
    """Another canary; the dashboard is down."""
    proxy = {"application": "llm", "proxy_url": f"{url}/llm"}
    for canary in ("chat", "embedding"):
        yield driver("ray_serve", url, {**proxy, "canary": canary})
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield driver("ray_serve", f"http://127.0.0.1:{nobody.getsockname()[1]}", proxy)


def driver(kind: str, url: str, options: dict[str, object]) -> ServiceDriver:
    return services.create(ServiceConfig(kind, kind, url, {}, options=options), Timing())


def use_all(kind: str) -> None:
    for name, scene in SCENES.items():
        if name.partition(" ")[0] == kind:
            with scene() as one:
                use(one.driver, one.model)
    for dialect, options in others(kind):
        with served(dialect) as url:
            use(driver(kind, url, options), "qwen")
    if kind == "ray_serve":
        ray = RayServe()
        with served(ray) as url:
            for one in other_rays(url):
                one.probe()
                ray.kill("llm", f"{one}", at=1.0)
                use(one, "qwen")


@pytest.mark.parametrize("kind", KINDS)
def test_a_driver_asks_what_the_page_says_and_nothing_else(kind: str, asked: set[str]) -> None:
    use_all(kind)
    lines = allowed(kind)
    assert {one for one in asked if not any(matches(one, line) for line in lines)} == set()
    assert {line for line in lines if not any(matches(one, line) for one in asked)} == set(), (
        "it never asks that, so nobody needs to let it through"
    )


def test_so_does_that_of_ollama(asked: set[str]) -> None:
    with served(Ollama()) as url:
        use(driver("ollama", url, {}), "qwen")
    assert asked == allowed("ollama")


def test_every_driver_has_its_line() -> None:
    assert all(allowed(kind) for kind in services.names())
