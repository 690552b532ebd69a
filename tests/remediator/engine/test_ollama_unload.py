"""Unloading through Ollama's own API: an idle model goes, one in use stays; neither is faked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.processes import call, free_port, simulated_gpus, simulated_ollama
from tests.remediator.engine.test_ollama_driver import server, text


def driver(url: str) -> ServiceDriver:
    return services.create(ServiceConfig("ollama", "ollama", url, {}), Timing())


@pytest.fixture(scope="module")
def gpu() -> Iterator[tuple[str, str]]:
    """URL of simulated GPUs, and the uuid of the only card."""
    with simulated_gpus() as url:
        yield url, call(url + "/api/v1/gpus")["gpus"][0]["uuid"]


@pytest.fixture
def url(gpu: tuple[str, str]) -> Iterator[str]:
    arguments = ["--model", "llama3:8b=5GB", "--model", "qwen3=2GB", "--load-seconds", "0.05"]
    with simulated_ollama(*gpu, *arguments, "--keep-alive=-1s") as ollama:
        yield ollama


def used(gpu: tuple[str, str]) -> int:
    return int(call(f"{gpu[0]}/api/v1/gpus/{gpu[1]}")["memory_used_bytes"])


def loaded(one: ServiceDriver) -> list[str]:
    return sorted(model.name for model in one.probe().models)


def test_an_idle_model_goes_and_the_card_gets_its_memory_back(
    gpu: tuple[str, str], url: str, eventually: Callable[..., object]
) -> None:
    one = driver(url)
    assert one.can_unload
    one.load("llama3:8b", 20)
    one.load("qwen3", 20)
    eventually(lambda: used(gpu) >= 7e9)
    one.unload("llama3:8b", 20)
    assert loaded(one) == ["qwen3:latest"]
    eventually(lambda: used(gpu) < 5e9)
    one.unload("qwen3", 20)
    assert loaded(one) == []


def test_a_model_in_use_stays_and_its_request_is_answered_to_the_end(
    gpu: tuple[str, str], eventually: Callable[..., object]
) -> None:
    arguments = ["--model", "m=1GB", "--load-seconds", "0.05", "--tokens-per-second", "10"]
    with simulated_ollama(*gpu, *arguments) as url:
        one = driver(url)
        one.load("m", 20)
        answers: list[dict[str, object]] = []
        body = {"model": "m", "prompt": "x", "stream": False, "options": {"num_predict": 25}}
        asking = threading.Thread(
            target=lambda: answers.append(call(url + "/api/generate", body)), daemon=True
        )
        asking.start()
        eventually(lambda: call(f"{gpu[0]}/api/v1/gpus/{gpu[1]}")["utilization_ratio"] > 0.1)
        with pytest.raises(ServiceTimeout, match="still loaded"):
            one.unload("m", 0.3)
        assert loaded(one) == ["m:latest"]
        asking.join(30)
        assert answers[0]["done"] is True
        assert answers[0]["eval_count"] == 25


def test_a_model_that_is_not_there_is_unloaded_already(url: str) -> None:
    driver(url).unload("llama3:8b", 20)


def test_a_model_that_nobody_has_is_an_error(url: str) -> None:
    with pytest.raises(ServiceError, match="not found"):
        driver(url).unload("nobody:1b", 20)


def test_nothing_that_listens_is_refused() -> None:
    with pytest.raises(ServiceRefused):
        driver(f"http://127.0.0.1:{free_port()}").unload("m", 1)


def test_the_one_used_longest_ago_would_go_first_by_itself(url: str) -> None:
    one = driver(url)
    one.load("llama3:8b", 20)
    one.load("qwen3", 20)
    one.canary("llama3:8b", 20)
    ages = {model.name: model.expires_at for model in one.probe().models}
    assert ages["qwen3:latest"] < ages["llama3:8b"]


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("2318-05-01T12:00:00.123456789+02:00", 10_992_189_600.123456),
        ("2026-01-01T00:00:00Z", 1_767_225_600.0),
        ("0001-01-01T00:00:00Z", None),
        ("2026-01-01T00:00:00", None),
        ("soon", None),
        (7, None),
        (None, None),
    ],
)
def test_an_expiry_that_is_none_is_not_guessed(said: object, seconds: float | None) -> None:
    body = json.dumps({"models": [{"name": "m", "expires_at": said}]})
    with server(text("200 OK", body)) as (url, _):
        (model,) = driver(url).probe().models
    assert model.expires_at == (None if seconds is None else pytest.approx(seconds))
