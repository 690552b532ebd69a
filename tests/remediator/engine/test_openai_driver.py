"""The driver of any server with OpenAI's API: what is not configured is not known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ConfigError, ServiceError, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.dialects import OpenAi, served
from tests.remediator.engine.processes import free_port

# A page as LMDeploy and others have them: gauges of requests, and a counter of steps.
PAGE = """\
# TYPE lmdeploy:num_requests_running gauge
lmdeploy:num_requests_running{{model_name="qwen"}} 2.0
lmdeploy:num_requests_waiting{{model_name="qwen"}} 5.0
# TYPE lmdeploy:iteration_tokens_total counter
lmdeploy:iteration_tokens_total{{model_name="qwen"}} {tokens}.0
"""
NAMES = {
    "running": "lmdeploy:num_requests_running",
    "waiting": "lmdeploy:num_requests_waiting",
    "progress": ["lmdeploy:iteration_tokens_total"],
}


@pytest.fixture
def server() -> Iterator[OpenAi]:
    one = OpenAi(page=PAGE)
    with served(one):
        yield one


def driver(url: str, *, timeout: float = 20.0, **options: object) -> ServiceDriver:
    config = ServiceConfig("other", "openai", url, {}, options=options)
    return services.create(config, Timing(probe_timeout=timeout))


def test_without_any_option_its_models_are_known_and_nothing_else_is_asked(server: OpenAi) -> None:
    server.models["lora"] = "qwen"
    for url in (server.url, server.url + "/v1", server.url + "/v1/"):
        probe = driver(url).probe()
        assert (probe.state, [model.name for model in probe.models]) == ("ready", ["qwen"])
        assert (probe.requests_in_flight, probe.progress) == (None, None)
    assert set(server.paths) == {"/v1/models"}, "LiteLLM's /health calls every model"


def test_the_configured_metrics_are_demand_and_progress(server: OpenAi) -> None:
    one = driver(server.url, metrics_url=f"{server.url}/metrics", **NAMES)
    probe = one.probe()
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (2, 5, 100)
    one.canary("qwen", 20)
    assert one.probe().progress == 101


def test_a_counter_that_is_not_there_is_no_progress_and_no_half_of_it_either(
    server: OpenAi,
) -> None:
    for names in (["nobody_total"], [*NAMES["progress"], "nobody_total"]):
        probe = driver(
            server.url, metrics_url=f"{server.url}/metrics", progress=names, running="nobody"
        ).probe()
        assert (probe.state, probe.requests_running, probe.progress) == ("ready", None, None)


@pytest.mark.parametrize("answer", [(500, ""), (200, "<html>"), (200, "lmdeploy:x{ 1\n")])
def test_metrics_that_cannot_be_read_are_not_zero(server: OpenAi, answer: object) -> None:
    server.forced["/metrics"] = answer  # type: ignore[assignment]
    probe = driver(server.url, metrics_url=f"{server.url}/metrics", **NAMES).probe()
    assert (probe.state, probe.requests_in_flight, probe.progress) == ("ready", None, None)


def test_a_server_that_lists_what_it_could_load_is_never_made_to_load_it(server: OpenAi) -> None:
    one = driver(server.url, lists="available")
    probe = one.probe()
    assert (probe.state, probe.models) == ("ready", ())
    with pytest.raises(ServiceError, match="could load it"):
        one.canary("qwen", 1)
    with pytest.raises(ServiceError, match="cannot be seen"):
        one.load("qwen", 1)
    assert server.writes == []


@pytest.mark.parametrize(
    ("canary", "path"),
    [
        ("completion", "/v1/completions"),
        ("chat", "/v1/chat/completions"),
        ("embedding", "/v1/embeddings"),
    ],
)
def test_a_canary_is_one_token_or_one_embedding(server: OpenAi, canary: str, path: str) -> None:
    one = driver(server.url, canary=canary)
    assert 0 <= one.canary("qwen", 20) < 20
    assert (server.paths, server.asked[0].body["model"]) == ([path], "qwen")
    with pytest.raises(ServiceError, match=r"HTTP 404.*does not exist"):
        one.canary("nobody", 20)
    server.forced[path] = (200, {"object": "list"})
    with pytest.raises(ServiceError, match="not answered as such a server does"):
        one.canary("qwen", 20)
    server.forced.clear()
    server.hangs.add(path)
    with pytest.raises(ServiceTimeout):
        one.canary("qwen", 0.2)


def test_the_key_goes_to_the_api_and_not_to_the_metrics(server: OpenAi, tmp_path: Path) -> None:
    server.key = "short"
    said = driver(server.url).probe()
    assert (said.state, "options.api_key_file" in said.detail) == ("error", True)
    (tmp_path / "key").write_text("short\n")
    told = {"api_key_file": str(tmp_path / "key"), "metrics_url": f"{server.url}/metrics"}
    server.asked.clear()
    assert driver(server.url, **told, **NAMES).probe().state == "ready"
    assert {request.path: request.bearer for request in server.asked} == {
        "/v1/models": "short",
        "/metrics": None,
    }


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((500, ""), "error"),
        ((200, "[]"), "error"),
        ((200, "no JSON"), "error"),
        ((302, ""), "error"),
    ],
)
def test_a_probe_never_raises(server: OpenAi, answer: tuple[int, object], state: str) -> None:
    server.forced["/v1/models"] = answer
    probe = driver(server.url).probe()
    assert (probe.state, bool(probe.detail)) == (state, True)


def test_what_does_not_answer_is_silent_and_what_does_not_listen_refused(server: OpenAi) -> None:
    server.hangs.add("/v1/models")
    assert driver(server.url, timeout=0.3).probe().state == "silent"
    assert driver(f"http://127.0.0.1:{free_port()}").probe().state == "refused"


def test_loaded_is_what_it_serves_and_nothing_is_unloaded(server: OpenAi) -> None:
    one = driver(server.url)
    one.load("qwen", 20)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 20)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="cannot unload qwen"):
        one.unload("qwen", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics_url": "127.0.0.1/metrics"},
        {"progress": ["x_total"]},
        {"metrics_url": "http://127.0.0.1/metrics", "running": "x{a=1}"},
    ],
)
def test_options_that_cannot_be_used_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="options"):
        driver("http://127.0.0.1:1", **wrong)
