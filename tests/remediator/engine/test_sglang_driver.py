"""The SGLang driver against its dialect (0.5.23): what says ready, paused, hung and starting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services import ServiceDriver, sglang
from tests.remediator.engine.dialects import SgLang, served
from tests.remediator.engine.processes import free_port


def driver(url: str, *, timeout: float = 20.0, **options: object) -> ServiceDriver:
    config = ServiceConfig("sglang", "sglang", url, {}, options=options)
    return services.create(config, Timing(probe_timeout=timeout))


@pytest.fixture
def server() -> Iterator[SgLang]:
    one = SgLang()
    with served(one):
        yield one


def test_demand_and_progress_are_those_of_all_its_schedulers(server: SgLang) -> None:
    server.running, server.waiting = 3, 5
    probe = driver(server.url).probe()
    assert (probe.state, probe.requests_running, probe.requests_waiting) == ("ready", 3, 5)
    assert [model.name for model in probe.models] == ["qwen"]
    assert probe.progress == 40 + 100 + 1.5, "and not what counts only at the end of a request"
    server.tokens += 1
    assert driver(server.url).probe().progress > probe.progress


def test_a_probe_asks_for_no_token(server: SgLang) -> None:
    driver(server.url).probe()
    assert not {"/health", "/health_generate"} & set(server.paths)
    assert server.writes == []


def test_without_enable_metrics_demand_and_progress_are_not_known(server: SgLang) -> None:
    server.metrics = False
    probe = driver(server.url).probe()
    assert (probe.state, probe.requests_in_flight, probe.progress) == ("ready", None, None)
    assert "no metrics" in probe.detail


def test_one_that_starts_is_loading(server: SgLang) -> None:
    server.status = "Starting"
    assert driver(server.url).probe().state == "loading"


def test_one_that_was_paused_cannot_be_told_from_one_that_is_stuck(server: SgLang) -> None:
    server.paused = True
    probe = driver(server.url, timeout=1).probe()
    assert (probe.state, "paused, or" in probe.detail) == ("silent", True)
    assert (probe.requests_in_flight, probe.progress) == (None, None), "so nothing is stalled"


def test_one_that_found_itself_unhealthy_is_asked_and_believed(server: SgLang) -> None:
    server.status = "UnHealthy"
    assert driver(server.url).probe().state == "ready", "its check was answered"
    assert server.status == "Up"
    server.status, server.engine = "UnHealthy", False
    assert driver(server.url, timeout=0.3).probe().state == "silent"


def test_a_hung_engine_with_a_good_ready_is_still_ready_and_its_counters_tell(
    server: SgLang,
) -> None:
    server.engine, server.running = False, 2
    first, second = driver(server.url).probe(), driver(server.url).probe()
    assert (first.state, first.requests_running) == ("ready", 2)
    assert first.progress == second.progress


@pytest.mark.parametrize(
    ("path", "answer", "state"),
    [
        ("/ready", (500, ""), "error"),
        ("/ready", (404, ""), "ready"),
        ("/v1/models", (200, "[]"), "error"),
        ("/v1/models", (500, ""), "error"),
        ("/metrics", (200, "\x00 sglang:"), "ready"),
    ],
)
def test_a_probe_never_raises(server: SgLang, path: str, answer: object, state: str) -> None:
    server.forced[path] = answer
    assert driver(server.url).probe().state == state


@pytest.mark.parametrize("path", ["/ready", "/v1/models"])
def test_what_does_not_answer_is_silent(server: SgLang, path: str) -> None:
    server.hangs.add(path)
    assert driver(server.url, timeout=0.3).probe().state == "silent"


def test_nothing_that_listens_is_refused() -> None:
    assert driver(f"http://127.0.0.1:{free_port()}").probe().state == "refused"


def test_the_key_goes_to_what_asks_for_it_and_nowhere_else(server: SgLang, tmp_path: Path) -> None:
    server.key = "short"
    said = driver(server.url).probe()
    assert (said.state, "options.api_key_file" in said.detail) == ("error", True)
    (tmp_path / "key").write_text("short\n")
    one = driver(server.url, api_key_file=str(tmp_path / "key"), canary="completion")
    assert one.probe().state == "ready"
    one.canary("qwen", 20)
    keys = {request.path: request.bearer for request in server.asked}
    assert keys["/v1/models"] == keys["/v1/completions"] == "short"
    assert keys["/ready"] is keys["/metrics"] is None


def test_the_canary_is_its_own_check(server: SgLang) -> None:
    assert 0 <= driver(server.url).canary("qwen", 20) < 20
    assert server.paths == ["/health_generate"]


def test_a_check_that_nothing_answers_is_no_proof(
    server: SgLang, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.engine = False
    with pytest.raises(ServiceTimeout):
        driver(server.url).canary("qwen", 0.2)
    # Its own twenty seconds say no more: a long prompt is as silent.
    monkeypatch.setattr(sglang, "_LOOKED_IN_VAIN", 0.0)
    server.forced["/health_generate"] = (503, "")
    with pytest.raises(ServiceTimeout, match="put nothing out"):
        driver(server.url).canary("qwen", 20)


def test_a_check_that_is_refused_at_once_has_failed(server: SgLang) -> None:
    server.status = "Starting"
    with pytest.raises(ServiceError, match="HTTP 503") as caught:
        driver(server.url).canary("qwen", 20)
    assert not isinstance(caught.value, ServiceTimeout)


@pytest.mark.parametrize(
    ("canary", "path"), [("completion", "/v1/completions"), ("embedding", "/v1/embeddings")]
)
def test_another_canary_can_be_had(server: SgLang, canary: str, path: str) -> None:
    driver(server.url, canary=canary).canary("qwen", 20)
    assert server.paths == [path]
    with pytest.raises(ServiceError, match="does not exist"):
        driver(server.url, canary=canary).canary("nobody", 20)


def test_memory_is_never_asked_back(server: SgLang) -> None:
    one = driver(server.url)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="cannot unload qwen"):
        one.unload("qwen", 1)
    assert server.asked == []


def test_loaded_is_what_it_serves(server: SgLang) -> None:
    one = driver(server.url)
    one.load("qwen", 20)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 20)
    server.status = "Starting"
    with pytest.raises(ServiceTimeout, match="not ready to serve qwen"):
        one.load("qwen", 0.2)
