"""What a driver says it can it can, and what it says it cannot it refuses without asking anybody."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError
from remediator.services import Capabilities, ServiceDriver
from remediator.services.base import Able
from tests.remediator.engine.dialects import OpenAi, SgLang, served
from tests.remediator.engine.llamacpp_dialect import (
    CANARY,
    COMPLETION,
    IDLE,
    Answers,
    Router,
)
from tests.remediator.engine.llamacpp_dialect import MODELS as LLAMA_MODELS
from tests.remediator.engine.processes import call, simulated_gpus, simulated_ollama
from tests.remediator.engine.ray_dialect import RayServe
from tests.remediator.engine.test_openai_driver import NAMES, PAGE
from tests.remediator.engine.triton_dialect import Triton
from tests.remediator.engine.vllm_server import fake_vllm
from tests.test_docs import rows, section, text, wrong_keys

VERBS = tuple(field.name for field in dataclasses.fields(Capabilities))
# How the page puts what the code says.
WORDS = {"yes": "yes", "no": "no"}


@dataclasses.dataclass(frozen=True)
class Scene:
    """A server in order with a loaded model; how many requests it has had."""

    driver: ServiceDriver
    model: str
    asked: Callable[[], int]


def scene(kind: str, url: str, model: str, asked: list[Any], **options: object) -> Scene:
    config = ServiceConfig(kind, kind, url, {}, options=options)
    return Scene(services.create(config, Timing()), model, lambda: len(asked))


@contextlib.contextmanager
def _ollama() -> Iterator[Scene]:
    with simulated_gpus() as gpus:
        uuid = call(gpus + "/api/v1/gpus")["gpus"][0]["uuid"]
        arguments = ["--model", "m=1GB", "--load-seconds", "0.05", "--keep-alive=-1s"]
        with simulated_ollama(gpus, uuid, *arguments) as url:
            one = scene("ollama", url, "m:latest", [])
            one.driver.load("m", 20)
            yield one


@contextlib.contextmanager
def _vllm() -> Iterator[Scene]:
    with fake_vllm() as fake:
        yield scene("vllm", fake.url, "qwen", fake.asked)


@contextlib.contextmanager
def _llamacpp(*, router: bool, **options: object) -> Iterator[Scene]:
    with fake_vllm() as fake:
        fake.answers = Answers(
            {
                "/health": (200, {"status": "ok"}),
                "/props": (200, {"is_sleeping": False}),
                "/metrics": (200, IDLE),
                "/v1/models": (200, LLAMA_MODELS),
                CANARY: (200, COMPLETION),
            }
        )
        if router:
            Router(fake).has(a="loaded")
        one = scene("llamacpp", fake.url, "a" if router else "qwen", fake.asked, **options)
        one.driver.probe()
        yield one


@contextlib.contextmanager
def _dialect(
    kind: str, dialect: Any, options: Callable[[str], dict[str, object]] = lambda url: {}
) -> Iterator[Scene]:
    with served(dialect) as url:
        yield scene(kind, url, "qwen", dialect.asked, **options(url))


def _of_metrics(url: str) -> dict[str, object]:
    return {"metrics_url": f"{url}/metrics"}


SCENES: dict[str, Callable[[], contextlib.AbstractContextManager[Scene]]] = {
    "ollama": _ollama,
    "vllm": _vllm,
    "sglang": lambda: _dialect("sglang", SgLang()),
    "llamacpp": lambda: _llamacpp(router=False),
    "llamacpp router": lambda: _llamacpp(router=True),
    "llamacpp unread": lambda: _llamacpp(router=False, metrics=False),
    "ray_serve": lambda: _dialect(
        "ray_serve",
        RayServe(),
        lambda url: {**_of_metrics(url), "application": "llm", "proxy_url": f"{url}/llm"},
    ),
    "ray_serve alone": lambda: _dialect("ray_serve", RayServe()),
    "triton": lambda: _dialect(
        "triton", Triton(), lambda url: {**_of_metrics(url), "model_control": "explicit"}
    ),
    "triton alone": lambda: _dialect("triton", Triton()),
    "openai": lambda: _dialect(
        "openai", OpenAi(page=PAGE), lambda url: {**_of_metrics(url), **NAMES}
    ),
    "openai alone": lambda: _dialect("openai", OpenAi()),
    "openai available": lambda: _dialect("openai", OpenAi(), lambda url: {"lists": "available"}),
}


@pytest.fixture(scope="module", params=sorted(SCENES))
def one(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with SCENES[request.param]() as found:
        yield found


def test_every_driver_is_held_to_its_table() -> None:
    assert {name.partition(" ")[0] for name in SCENES} == set(services.names())


def test_the_table_is_whole(one: Scene) -> None:
    for verb in VERBS:
        said = getattr(one.driver.capabilities, verb)
        assert said.able in get_args(Able), verb
        assert 10 < len(said.how) < 120, verb


def test_models_demand_and_progress_are_known_where_it_says_so(one: Scene) -> None:
    can, probe = one.driver.capabilities, one.driver.probe()
    assert probe.state == "ready"
    names = [model.name for model in probe.models]
    assert names == ([one.model] if can.models.able == "yes" else [])
    numbers = [probe.requests_running, probe.requests_waiting]
    known = sum(number is not None for number in numbers)
    assert known in {"yes": (2,), "partly": (1, 2), "no": (0,)}[can.demand.able]
    if can.progress.able != "partly":
        assert (probe.progress is not None) == (can.progress.able == "yes")
    if can.drain.able != "partly":
        assert (probe.requests_running is not None) == (can.drain.able == "yes")


def test_a_canary_is_answered_or_refused_without_asking(one: Scene) -> None:
    if one.driver.capabilities.canary.able == "yes":
        assert one.driver.canary(one.model, 10) >= 0
        return
    before = one.asked()
    with pytest.raises(ServiceError):
        one.driver.canary(one.model, 10)
    assert one.asked() == before


def test_memory_is_given_back_or_that_is_refused_without_asking(one: Scene) -> None:
    able, driver = one.driver.capabilities.free_memory.able, one.driver
    assert able == "partly" or driver.can_unload == (able == "yes")
    if driver.can_unload:
        driver.unload(one.model, 10)
        assert one.model not in {model.name for model in driver.probe().models}
        driver.load(one.model, 10)
    else:
        before = one.asked()
        with pytest.raises(ServiceError, match=re.escape(one.model)):
            driver.unload(one.model, 10)
        assert one.asked() <= before + (0 if able == "no" else 3)
    names = [model.name for model in driver.probe().models]
    assert driver.capabilities.models.able == "no" or one.model in names


def test_what_is_loaded_is_there_and_what_it_does_not_have_it_says_it_lacks(one: Scene) -> None:
    able, driver = one.driver.capabilities.load.able, one.driver
    if able == "no":
        before = one.asked()
        with pytest.raises(ServiceError):
            driver.load(one.model, 1)
        assert one.asked() == before
        return
    driver.load(one.model, 10)
    with pytest.raises(ServiceError, match="nobody"):
        driver.load("nobody", 0.3)


def _page() -> str:
    return text("services.md")


@pytest.mark.parametrize("name", services.names())
def test_the_page_has_a_row_and_a_section_for_every_driver_with_its_options(name: str) -> None:
    cells = rows(_page())[name]
    can = services.create(
        ServiceConfig(name, name, "http://127.0.0.1:1", {}), Timing()
    ).capabilities
    for verb, cell in zip(VERBS, cells, strict=False):
        # What depends on something is put in other words there.
        if cell in WORDS:
            assert getattr(can, verb).able == WORDS[cell], verb
        elif not cell.startswith(("with ", "where ", "in ")):
            assert getattr(can, verb).able != "yes", verb
    module = importlib.import_module(f"remediator.services.{name}")
    assert wrong_keys(module.Options, section(_page(), name)) == []
    assert re.search("dialect|real", cells[len(VERBS)])


def test_nothing_that_the_page_says_is_never_called_stands_in_the_code() -> None:
    code = "".join(
        # The first docstring of each file says why not.
        path.read_text().split('"""', 2)[2]
        for path in Path(str(services.__file__)).parent.glob("*.py")
    )
    # Where a table of capabilities names them, it says that they free nothing.
    code = re.sub(r"Capability\([^)]*\)", "", code)
    for call_ in ("release_memory", "flush_cache", "reset_prefix_cache", "/sleep", "/pause"):
        assert call_ not in code, call_
    assert not re.search(r'"(PUT|DELETE|PATCH)"', code)
