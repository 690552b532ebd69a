"""The Triton driver against its dialect (2.73): explicit control, restricted API, what waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ConfigError, ServiceError, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.dialects import served
from tests.remediator.engine.processes import free_port
from tests.remediator.engine.triton_dialect import Triton

HEADER = ("admin-key", "the-value-of-it")


@pytest.fixture
def triton() -> Iterator[Triton]:
    one = Triton()
    with served(one):
        yield one


def driver(
    triton: Triton, *, timeout: float = 20.0, url: str = "", **more: object
) -> ServiceDriver:
    """One in explicit mode, that was told where the metrics are."""
    told = {"metrics_url": f"{triton.url}/metrics", "model_control": "explicit"}
    config = ServiceConfig("triton", "triton", url or triton.url, {}, options={**told, **more})
    return services.create(config, Timing(probe_timeout=timeout))


def loaded(one: ServiceDriver) -> list[str]:
    return [model.name for model in one.probe().models]


def test_the_models_that_are_ready_are_loaded(triton: Triton) -> None:
    triton.states["other"] = "READY"
    probe = driver(triton).probe()
    assert (probe.state, loaded(driver(triton))) == ("ready", ["qwen", "other"])
    assert "2 model(s) ready" in probe.detail


def test_what_waits_and_what_was_carried_out_is_known_and_what_runs_is_not(triton: Triton) -> None:
    triton.pending["qwen"] = 3
    probe = driver(triton).probe()
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (None, 3, 200)
    assert probe.requests_in_flight == 3
    triton.pending["qwen"] = 0
    assert driver(triton).probe().requests_in_flight is None, "something may still run"


def test_a_vllm_in_it_says_what_runs_and_its_steps_are_the_progress(triton: Triton) -> None:
    triton.running = 2
    probe = driver(triton).probe()
    assert (probe.requests_running, probe.progress) == (2, 100)


def test_without_the_address_of_its_metrics_neither_is_known(triton: Triton) -> None:
    probe = driver(triton, metrics_url="").probe()
    assert (probe.state, probe.requests_in_flight, probe.progress) == ("ready", None, None)
    assert "/metrics" not in triton.paths


@pytest.mark.parametrize(
    ("state", "reason", "expected", "words"),
    [
        ("LOADING", "", "loading", "loads new"),
        ("UNAVAILABLE", "Internal: CUDA out of memory", "error", "new: Internal: CUDA out"),
        ("UNAVAILABLE", "unloaded", "ready", "1 model"),
        ("", "", "ready", "1 model"),
    ],
)
def test_a_model_that_failed_to_load_is_an_error_and_one_unloaded_on_purpose_none(
    triton: Triton, state: str, reason: str, expected: str, words: str
) -> None:
    triton.states["new"], triton.reasons["new"] = state, reason
    probe = driver(triton).probe()
    assert (probe.state, words in probe.detail) == (expected, True)
    assert [model.name for model in probe.models] == ["qwen"]


def test_a_backend_that_died_behind_a_ready_model_is_an_error(triton: Triton) -> None:
    triton.backend_died = True
    probe = driver(triton).probe()
    assert (probe.state, "backend" in probe.detail) == ("error", True)


@pytest.mark.parametrize(
    ("path", "answer", "state"),
    [
        ("/v2/health/live", (400, ""), "error"),
        ("/v2/repository/index", (500, {"error": "no"}), "error"),
        ("/v2/repository/index", (200, {"models": []}), "error"),
        ("/v2/repository/index", (200, "no JSON"), "error"),
        ("/metrics", (404, ""), "ready"),
        ("/metrics", (200, "nv_inference_exec_count{} two\n"), "ready"),
    ],
)
def test_a_probe_never_raises(triton: Triton, path: str, answer: object, state: str) -> None:
    triton.forced[path] = answer  # type: ignore[assignment]
    probe = driver(triton).probe()
    assert (probe.state, bool(probe.detail)) == (state, True)


def test_what_does_not_answer_is_silent_and_what_does_not_listen_refused(triton: Triton) -> None:
    assert driver(triton, url=f"http://127.0.0.1:{free_port()}").probe().state == "refused"
    triton.hangs.add("/v2/health/live")
    assert driver(triton, timeout=0.3).probe().state == "silent"


def test_a_probe_changes_nothing(triton: Triton) -> None:
    driver(triton).probe()
    assert {request.path for request in triton.writes} == {"/v2/repository/index"}


def test_a_model_is_unloaded_with_its_parts_and_loaded_again(triton: Triton) -> None:
    one = driver(triton)
    assert one.can_unload
    triton.looks = 3
    one.unload("qwen", 20)
    assert loaded(one) == []
    (order,) = [request for request in triton.writes if request.path.endswith("/unload")]
    assert order.body == {"parameters": {"unload_dependents": True}}
    one.load("qwen", 20)
    assert loaded(one) == ["qwen"]


def test_a_model_that_is_loaded_is_not_loaded_anew(triton: Triton) -> None:
    driver(triton).load("qwen", 20)
    assert triton.loads == []


def test_an_unload_that_does_not_end_is_in_use(triton: Triton) -> None:
    triton.busy.add("qwen")
    with pytest.raises(ServiceTimeout, match="most likely it is in use"):
        driver(triton).unload("qwen", 0.5)


@pytest.mark.parametrize("what", ["waits", "runs"])
def test_a_model_that_is_seen_to_be_in_use_is_not_touched(triton: Triton, what: str) -> None:
    if what == "waits":
        triton.pending["qwen"] = 1
    else:
        triton.running = 1
    with pytest.raises(ServiceTimeout, match="it is in use"):
        driver(triton).unload("qwen", 0.4)
    assert triton.writes == []


def test_a_model_that_cannot_be_loaded_says_why(triton: Triton) -> None:
    triton.states["broken"] = ""
    triton.broken.add("broken")
    with pytest.raises(ServiceError, match=r"load of broken failed \(HTTP 400\): failed to load"):
        driver(triton).load("broken", 20)
    with pytest.raises(ServiceError, match="has no model nobody; it has: qwen"):
        driver(triton).load("nobody", 20)


def test_in_another_mode_nothing_is_loaded_or_unloaded(triton: Triton) -> None:
    triton.explicit = False
    one = driver(triton, model_control="none")
    assert one.can_unload is False
    with pytest.raises(ServiceError, match=r"options\.model_control"):
        one.unload("qwen", 1)
    one.load("qwen", 1)
    with pytest.raises(ServiceTimeout, match="is not ready in time"):
        one.load("ensemble", 0.3)
    orders = [path for path in triton.paths if path.endswith("load")]
    assert orders == []


def test_a_server_that_is_not_in_the_mode_it_was_said_to_be_says_so(triton: Triton) -> None:
    triton.explicit = False
    with pytest.raises(ServiceError, match="explicit model load / unload is not allowed"):
        driver(triton).unload("qwen", 1)


def test_the_header_of_the_restricted_api_is_sent_and_its_lack_said(
    triton: Triton, tmp_path: Path
) -> None:
    triton.restricted = HEADER
    said = driver(triton).probe()
    assert said.state == "error"
    assert "expecting header 'admin-key'; see options.restricted_header" in said.detail
    value = tmp_path / "value"
    value.write_text(HEADER[1] + "\n")
    told = {"restricted_header": HEADER[0], "restricted_value_file": str(value)}
    one = driver(triton, **told)
    assert one.probe().state == "ready"
    one.unload("qwen", 20)
    one.load("qwen", 20)
    shown = {r.path: r.headers.get(HEADER[0]) for r in triton.asked}
    assert shown["/v2/health/live"] is shown["/metrics"] is None


def test_a_canary_is_one_generate_request_or_the_configured_one(triton: Triton) -> None:
    assert 0 <= driver(triton).canary("qwen", 20) < 20
    assert triton.asked[-1].path == "/v2/models/qwen/generate"
    assert triton.asked[-1].body["parameters"]["max_tokens"] == 1
    request = {"inputs": [{"name": "X", "shape": [1], "datatype": "FP32", "data": [0]}]}
    driver(triton, canary_path="infer", canary_request=request).canary("qwen", 20)
    assert (triton.asked[-1].path, triton.asked[-1].body) == ("/v2/models/qwen/infer", request)
    with pytest.raises(ServiceError, match=r"HTTP 400.*not found"):
        driver(triton).canary("ensemble", 20)
    triton.forced["/v2/models/qwen/generate"] = (200, {"error": "too late"})
    with pytest.raises(ServiceError, match="not answered as Triton does"):
        driver(triton).canary("qwen", 20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics_url": "127.0.0.1:8002/metrics"},
        {"restricted_header": "admin-key"},
        {"restricted_value_file": "/no/such/file"},
        {"restricted_header": "a\r\nb", "restricted_value_file": "/no/such/file"},
    ],
)
def test_options_that_cannot_be_used_are_refused(triton: Triton, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        driver(triton, **wrong)
