"""The vLLM driver: against recorded pages, servers that misbehave, and the simulated service."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ConfigError, ServiceError, ServiceRefused, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.processes import (
    PYTHON,
    call,
    child,
    free_port,
    simulated_gpus,
    wait_for_port,
)
from tests.remediator.engine.vllm_server import (
    COMPLETION,
    HANGS,
    MODELS,
    PAGE,
    PROGRESS,
    FakeVllm,
    fake_vllm,
)
from tests.waiting import poll


def driver(url: str, *, timeout: float = 20.0, **options: object) -> ServiceDriver:
    config = ServiceConfig("vllm", "vllm", url, {}, options=options)
    return services.create(config, Timing(probe_timeout=timeout))


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


def test_demand_and_progress_are_summed_over_the_engines(fake: FakeVllm) -> None:
    probe = driver(fake.url).probe()
    assert probe.state == "ready"
    assert [model.name for model in probe.models] == ["qwen"]
    assert (probe.requests_running, probe.requests_waiting) == (3, 5)
    assert probe.requests_in_flight == 8
    assert probe.progress == PROGRESS


@pytest.mark.parametrize(
    "name", ["generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count"]
)
def test_each_of_the_counters_is_progress(fake: FakeVllm, name: str) -> None:
    one = driver(fake.url)
    before = one.probe().progress
    line = next(line for line in PAGE.splitlines() if line.startswith(f"vllm:{name}{{"))
    more = line.rpartition(" ")[0] + " 5000.0"
    fake.answers["/metrics"] = (200, PAGE.replace(line, more))
    assert one.probe().progress > before


@pytest.mark.parametrize(
    "metrics",
    [
        (200, "# HELP process_cpu_seconds_total\nprocess_cpu_seconds_total 3\n"),
        (200, ""),
        (404, {"detail": "Not Found"}),
        (500, "no"),
        (200, "<html>a proxy</html>"),
        (200, 'vllm:num_requests_running{engine="0" 2.0\n'),
        (200, "vllm:num_requests_running{} two\n"),
        (200, "\x00\xff" * 1000),
    ],
)
def test_without_readable_engine_metrics_demand_and_progress_are_not_known(
    fake: FakeVllm, metrics: object
) -> None:
    fake.answers["/metrics"] = metrics
    probe = driver(fake.url).probe()
    assert probe.state == "ready"
    assert probe.detail
    assert [model.name for model in probe.models] == ["qwen"]
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (None, None, None)
    assert probe.requests_in_flight is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1.0"])
def test_a_number_that_counts_nothing_is_no_reading(fake: FakeVllm, value: str) -> None:
    fake.answers["/metrics"] = (
        200,
        PAGE.replace(
            'running{engine="1",model_name="qwen"} 1.0',
            f'running{{engine="1",model_name="qwen"}} {value}',
        ),
    )
    probe = driver(fake.url).probe()
    assert probe.requests_running is None
    assert probe.requests_waiting == 5
    assert probe.progress == PROGRESS


def test_requests_that_are_known_to_wait_are_demand_and_none_that_run_prove_nothing(
    fake: FakeVllm,
) -> None:
    lines = [line for line in PAGE.splitlines() if "num_requests_waiting" not in line]
    fake.answers["/metrics"] = (200, "\n".join(lines))
    assert driver(fake.url).probe().requests_in_flight == 3
    none = [line.replace("} 2.0", "} 0.0").replace("} 1.0", "} 0.0") for line in lines]
    fake.answers["/metrics"] = (200, "\n".join(none))
    assert driver(fake.url).probe().requests_in_flight is None


def test_a_dead_engine_is_told_from_a_proxy_that_turns_away_and_nothing_that_listens_is_refused(
    fake: FakeVllm,
) -> None:
    fake.answers["/health"] = (503, "")
    probe = driver(fake.url).probe()
    assert (probe.state, probe.models) == ("dead", ())
    fake.answers["/health"] = (503, "<html>Service Unavailable</html>")
    assert driver(fake.url).probe().state == "error"
    one = driver(f"http://127.0.0.1:{free_port()}")
    assert one.probe().state == "refused"
    with pytest.raises(ServiceRefused):
        one.canary("qwen", 1)


@pytest.mark.parametrize(
    ("path", "answer", "state"),
    [
        ("/health", HANGS, "silent"),
        ("/v1/models", HANGS, "silent"),
        ("/metrics", HANGS, "silent"),
        ("/v1/models", (200, "[]"), "error"),
        ("/v1/models", (200, "not JSON"), "error"),
        ("/v1/models", (200, {"data": 3}), "error"),
        ("/v1/models", (200, {"data": ["qwen"]}), "error"),
        ("/v1/models", (500, ""), "error"),
        ("/health", (302, ""), "error"),
    ],
)
def test_a_probe_never_raises_and_says_what_it_saw(
    fake: FakeVllm, path: str, answer: object, state: str
) -> None:
    fake.answers[path] = answer
    if path == "/metrics":
        # All calls of a probe share one deadline, so that nothing is left for the models.
        fake.answers["/v1/models"] = HANGS
    probe = driver(fake.url, timeout=0.4 if state == "silent" else 20).probe()
    assert probe.state == state
    assert probe.detail


def test_an_adapter_is_not_a_model_that_it_was_started_with(fake: FakeVllm) -> None:
    adapter = {"id": "lora", "object": "model", "parent": "qwen"}
    fake.answers["/v1/models"] = (200, {"data": [*MODELS["data"], adapter, {"id": 7}, {}]})
    assert [model.name for model in driver(fake.url).probe().models] == ["qwen"]


@pytest.mark.parametrize("level", ["weights_offloaded", "discard_all", "neither"])
def test_a_server_that_was_put_to_sleep_sleeps(fake: FakeVllm, level: str) -> None:
    page = PAGE.replace('sleep_state="awake"} 1.0', 'sleep_state="awake"} 0.0')
    page = page.replace(f'sleep_state="{level}"}} 0.0', f'sleep_state="{level}"}} 1.0')
    fake.answers["/metrics"] = (200, page)
    assert driver(fake.url).probe().state == "sleeping"


@pytest.mark.parametrize("path", ["/is_sleeping", "/is_paused"])
def test_in_dev_mode_it_says_itself_that_somebody_stopped_it(fake: FakeVllm, path: str) -> None:
    one = driver(fake.url)
    fake.answers["/is_sleeping"] = (200, {"is_sleeping": False})
    fake.answers["/is_paused"] = (200, {"is_paused": False})
    assert one.probe().state == "ready"
    fake.answers[path] = (200, {path[1:]: True})
    probe = one.probe()
    assert (probe.state, probe.requests_waiting) == ("sleeping", 5)


@pytest.mark.parametrize("answer", [HANGS, (500, ""), (200, "[]"), (200, {"is_sleeping": "yes"})])
def test_a_server_that_does_not_say_that_it_sleeps_is_taken_to_be_awake(
    fake: FakeVllm, answer: object
) -> None:
    fake.answers["/is_sleeping"] = answer
    one = driver(fake.url, timeout=1 if answer is HANGS else 20)
    assert one.probe().state == "ready"


def test_a_server_without_dev_mode_is_not_asked_again_and_again(fake: FakeVllm) -> None:
    one = driver(fake.url)
    for _ in range(3):
        assert one.probe().state == "ready"
    assert fake.paths.count("/is_sleeping") == 1
    assert "/is_paused" not in fake.paths


def test_the_key_goes_to_what_asks_for_it_and_nowhere_else(fake: FakeVllm, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    one = driver(fake.url, api_key_file=str(tmp_path / "key"))
    assert one.probe().state == "ready"
    one.canary("qwen", 20)
    keys = {path: key for path, key, _ in fake.asked}
    assert keys["/v1/models"] == keys["/v1/completions"] == "Bearer short"
    assert keys["/health"] is keys["/metrics"] is keys["/is_sleeping"] is None


def test_a_key_that_is_missing_or_wrong_is_said(fake: FakeVllm, tmp_path: Path) -> None:
    unauthorized = (401, {"error": "Unauthorized"})
    fake.answers["/v1/models"] = fake.answers["/v1/completions"] = unauthorized
    probe = driver(fake.url).probe()
    assert probe.state == "error"
    assert "options.api_key_file" in probe.detail
    assert probe.progress == PROGRESS, "its metrics are open"
    with pytest.raises(ServiceError, match=r"HTTP 401.*Unauthorized.*options.api_key_file"):
        driver(fake.url).canary("qwen", 20)
    (tmp_path / "key").write_text("wrong-key")
    said = driver(fake.url, api_key_file=str(tmp_path / "key")).probe().detail
    assert "is not its API key" in said
    assert "wrong-key" not in said


def test_a_key_file_that_is_not_there_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the token file"):
        driver("http://127.0.0.1:1", api_key_file=str(tmp_path / "none"))


def test_a_canary_is_one_token(fake: FakeVllm) -> None:
    assert 0 <= driver(fake.url).canary("qwen", 20) < 20
    (_, _, body) = fake.asked[-1]
    assert b'"max_tokens": 1' in body
    assert b'"model": "qwen"' in body


def test_a_server_of_embeddings_is_asked_for_one(fake: FakeVllm) -> None:
    fake.answers["/v1/embeddings"] = (200, {"data": [{"embedding": [0.1]}]})
    one = driver(fake.url, canary="embedding")
    assert one.canary("qwen", 20) >= 0
    path, _, body = fake.asked[-1]
    assert path == "/v1/embeddings"
    assert b'"input": "ping"' in body
    fake.answers["/v1/embeddings"] = (200, {"data": []})
    with pytest.raises(ServiceError, match="not answered as vLLM does"):
        one.canary("qwen", 20)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, {"error": {"message": "CUDA out of memory."}}), r"HTTP 500.*CUDA out of memory"),
        ((404, {"error": {"message": "The model `x` does not exist."}}), "does not exist"),
        ((503, "engine dead"), "HTTP 503"),
        ((200, {"choices": []}), "not answered as vLLM does"),
        ((200, "[]"), "not answered as vLLM does"),
        ((200, "not JSON"), "not JSON"),
    ],
)
def test_a_canary_without_an_answer_has_failed(fake: FakeVllm, answer: object, words: str) -> None:
    fake.answers["/v1/completions"] = answer
    with pytest.raises(ServiceError, match=words) as caught:
        driver(fake.url).canary("qwen", 20)
    assert not isinstance(caught.value, ServiceTimeout)


def test_never_two_canaries_at_once(fake: FakeVllm) -> None:
    fake.answers["/v1/completions"] = HANGS
    one = driver(fake.url)
    first = threading.Thread(target=_canary_quietly, args=(one,))
    first.start()
    poll(lambda: "/v1/completions" in fake.paths)
    with pytest.raises(ServiceTimeout, match="another canary"):
        one.canary("qwen", 0.2)
    assert fake.paths.count("/v1/completions") == 1
    fake.ends.set()
    first.join(60)
    fake.answers["/v1/completions"] = (200, COMPLETION)
    assert one.canary("qwen", 20) >= 0, "the turn was given back"


def _canary_quietly(one: ServiceDriver) -> None:
    with contextlib.suppress(ServiceError):
        one.canary("qwen", 60)


def test_loaded_is_what_it_serves(fake: FakeVllm) -> None:
    one = driver(fake.url)
    one.load("qwen", 20)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 20)
    assert "/v1/completions" not in fake.paths
    fake.answers["/health"] = (503, "")
    with pytest.raises(ServiceTimeout, match="not ready to serve qwen"):
        one.load("qwen", 0.2)


def test_it_says_that_it_cannot_unload(fake: FakeVllm) -> None:
    one = driver(fake.url)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="cannot unload qwen"):
        one.unload("qwen", 1)
    assert fake.asked == []


@pytest.fixture(scope="module")
def simulated() -> Iterator[str]:
    with simulated_gpus() as gpus:
        uuid = call(gpus + "/api/v1/gpus")["gpus"][0]["uuid"]
        port = free_port()
        argv = [PYTHON, "-m", "simulator", "vllm", "--listen", f"127.0.0.1:{port}"]
        argv += ["--gpu-server", gpus, "--gpu", uuid, "--model", "qwen=2GB"]
        argv += ["--load-seconds", "0.1", "--tokens-per-second", "200"]
        with child(argv) as process:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}"


def test_the_simulated_server_is_read_as_the_real_one(
    simulated: str, eventually: Callable[..., object]
) -> None:
    one = driver(simulated)
    eventually(lambda: one.probe().state == "ready")
    before = one.probe()
    assert [model.name for model in before.models] == ["qwen"]
    assert before.requests_in_flight == 0
    assert 0 < one.canary("qwen", 20) < 20
    assert one.probe().progress > before.progress
    one.load("qwen", 20)


def test_the_simulated_server_holds_requests_while_it_is_stalled(
    simulated: str, eventually: Callable[..., object]
) -> None:
    one = driver(simulated)
    eventually(lambda: one.probe().state == "ready")
    call(simulated + "/_simulator/faults", {"fault": "stall"})
    asking = threading.Thread(target=_canary_quietly, args=(one,))
    asking.start()
    eventually(lambda: one.probe().requests_in_flight)
    stuck = one.probe()
    assert (stuck.state, stuck.requests_in_flight) == ("ready", 1)
    assert one.probe().progress == stuck.progress
    call(simulated + "/_simulator/faults", method="DELETE")
    asking.join(20)
    eventually(lambda: one.probe().progress > stuck.progress)
