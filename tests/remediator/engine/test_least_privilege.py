"""What a driver asks of its server is what docs/services.md says, and nothing else."""

from __future__ import annotations

import contextlib
import re
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
from tests.test_docs import section, text

DIALECTS = sorted(set(SCENES) - {"ollama"})


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


def is_allowed(request: str, kind: str) -> bool:
    method, path = request.split(" ", 1)
    for one in allowed(kind):
        verb, pattern = one.split(" ", 1)
        # The proxy of an application has its route in front.
        regex = r"(?:/llm)?" + re.escape(pattern).replace("MODEL", "[^/]+")
        if verb == method and re.fullmatch(regex, path):
            return True
    return False


def use(driver: ServiceDriver, model: str) -> None:
    """Everything that can be asked of a driver, also in vain."""
    for _ in range(2):
        driver.probe()
        for what in (driver.canary, driver.unload, driver.load):
            for name in (model, "nobody"):
                with contextlib.suppress(ServiceError):
                    what(name, 0.3)


def others(name: str) -> Iterator[tuple[str, Dialect, dict[str, object]]]:
    """Servers with other canaries, and those that are not well."""
    kind = name.partition(" ")[0]
    if kind in ("vllm", "openai"):
        for canary in ("completion", "embedding"):
            yield kind, OpenAi(), {"canary": canary}
    if kind == "openai":
        yield kind, OpenAi(), {"canary": "chat"}
    if kind == "sglang":
        for status in ("Up", "Down"):
            yield kind, SgLang(status=status), {"canary": "completion"}
    if kind == "ray_serve":
        one = RayServe()
        one.kill("llm", "worker-2", at=1.0)
        yield kind, one, {}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_driver_asks_what_the_page_says_and_nothing_else(name: str, asked: set[str]) -> None:
    with SCENES[name]() as one:
        use(one.driver, one.model)
    for kind, dialect, options in others(name):
        with served(dialect) as url:
            use(
                services.create(ServiceConfig(kind, kind, url, {}, options=options), Timing()),
                "qwen",
            )
    kind = name.partition(" ")[0]
    assert asked
    assert {request for request in asked if not is_allowed(request, kind)} == set()


def test_so_does_that_of_ollama_and_it_needs_all_of_that(asked: set[str]) -> None:
    with served(Ollama()) as url:
        use(services.create(ServiceConfig("o", "ollama", url, {}), Timing()), "qwen")
    assert asked == allowed("ollama")


def test_every_driver_has_its_line() -> None:
    assert all(allowed(kind) for kind in services.names())
