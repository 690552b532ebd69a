"""Services that hang, die, are stopped or are only busy, side by side: each gets what it needs."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from deploy.local.errors import Unreachable
from deploy.local.options import Options, ServiceOptions
from deploy.local.stack import Stack
from tests.e2e.conftest import Incident, Played, Watcher, side_by_side
from tests.e2e.scene import ROOM, card, models_are_known, run_of

MODEL = "llama3.2:3b"
LARGE = "meta-llama/Llama-3.1-8B-Instruct"
REMEDY = ["settle", "check", "lower_load", "restart_service", "wait_ready", "load_models", "canary"]


def killed_under_supervisord_comes_back(watch: Watcher) -> None:
    _killed_and_back(watch, "killed")


def killed_plain_process_comes_back(watch: Watcher) -> None:
    """The remediator adopted it, and starts the next one."""
    _killed_and_back(watch, "plain")


def _killed_and_back(watch: Watcher, name: str) -> None:
    stack, service = watch.stack, watch.stack.llm(name)
    killed = service.kill()
    run = run_of(watch, f"service:{name}", "recover-oom")
    assert watch.steps(run["id"]) == REMEDY
    assert service.pid() not in (None, killed)
    assert service.loaded_models() == [MODEL]
    assert service.generate(MODEL, "hello")["done"] is True
    assert stack.metric("remediator", "llm_service_restarts_total", llm_service=name) == 1
    assert watch.pages("LLMServiceDown", llm_service=name) == []


def service_killed_for_memory_comes_back(watch: Watcher) -> None:
    """SIGKILL, and the kernel says that it was for memory."""
    stack, service = watch.stack, watch.stack.llm("starved")
    watch.until(
        "its process is known",
        lambda: stack.metric("remediator", "llm_service_up", llm_service="starved"),
    )
    vmstat = _procfs(stack) / "vmstat"
    vmstat.write_text("oom_kill 1\n")
    killed = service.kill(signal.SIGKILL)
    watch.until("it is counted", lambda: watch.events("out_of_memory", target="service:starved"))
    run = run_of(watch, "service:starved", "recover-oom")
    assert "restart_service" in watch.steps(run["id"])
    assert service.pid() not in (None, killed)
    assert service.loaded_models() == [MODEL]
    assert service.generate(MODEL, "hello")["done"] is True
    count = stack.metric("remediator", "llm_service_out_of_memory_total", llm_service="starved")
    assert count == 1
    others = [one["name"] for one in stack.services() if one["name"] != "starved"]
    assert not [name for name in others if watch.events("out_of_memory", target=f"service:{name}")]


def stalled_engine_is_restarted(watch: Watcher) -> None:
    """99 % for 30 s at low power, requests waiting, no tokens, and its health check says all is well."""
    stack, service = watch.stack, watch.stack.llm("stalled")
    stalled = service.pid()
    service.start_load()
    watch.until(
        "tokens flow",
        lambda: (
            (stack.metric("remediator", "llm_service_progress_total", llm_service="stalled") or 0)
            > 50
        ),
    )
    service.inject("stall")
    run = run_of(watch, f"gpu:{card(stack, STALLED)}", "recover-hang")
    assert "restart_service" in watch.steps(run["id"])
    assert service.pid() not in (None, stalled)
    assert service.generate(LARGE, "hello", tokens=2)["choices"]
    (critical,) = [
        one
        for one in watch.events("decision", alertname="GPUHang", target=run["target"])
        if one["data"].get("decision") == "run"
    ]
    assert critical["severity"] == "critical", "a confirmed hang is recorded as such"


def long_request_of_a_server_without_metrics_is_left_alone(watch: Watcher) -> None:
    """99 % for 30 s, and a canary that waits behind the request: that proves nothing."""
    service, uuid = watch.stack.llm("patient"), card(watch.stack, PATIENT)
    pid = service.pid()
    asking = Thread(target=_ask_for_long, args=(service.generate,), daemon=True)
    asking.start()
    decision = watch.until(
        "the hang is looked at",
        lambda: watch.events("decision", alertname="GPUHang", target=f"gpu:{uuid}"),
    )[0]
    assert decision["reason"] == "suspect", decision["sentence"]
    assert decision["data"]["evidence"]["saturated_seconds"] >= 30
    assert watch.runs(f"gpu:{uuid}") == []
    assert service.pid() == pid
    assert asking.is_alive(), "the request is still worked on"
    assert watch.pages("RemediationFailed", uuid=uuid) == []


def _ask_for_long(generate: Callable[..., object]) -> None:
    with contextlib.suppress(Unreachable):
        generate(MODEL, "Write a long book.", tokens=100_000, timeout=300.0)


def busy_is_refuted_and_left_alone(watch: Watcher) -> None:
    """99 % for longer than 30 s with tokens flowing."""
    stack, service, uuid = watch.stack, watch.stack.llm("busy"), card(watch.stack, BUSY)
    pid = service.pid()
    service.start_load()
    stack.inject("load", uuid, ratio=1.0)
    decision = watch.until(
        "the hang is refuted",
        lambda: watch.events("decision", target=f"gpu:{uuid}", alertname="GPUHang", reason="busy"),
    )[0]
    assert decision["data"]["decision"] == "refute"
    assert decision["data"]["evidence"]["saturated_seconds"] >= 30
    refuted = f'remediator_incident_state{{trigger="GPUHang",state="refuted",reason="busy",uuid="{uuid}"}}'
    watch.until("Prometheus knows that it is refuted", lambda: stack.query(f"{refuted} == 1"))
    assert watch.runs(f"gpu:{uuid}") == []
    assert service.pid() == pid
    assert service.generate(MODEL, "hello")["done"] is True


def service_that_an_operator_stops_is_left_alone(watch: Watcher) -> None:
    stack = watch.stack
    stack.stop_program("retired")
    decision = watch.until(
        "the alert is refuted",
        lambda: watch.events("decision", target="service:retired", reason="stopped_by_operator"),
    )[0]
    assert decision["data"]["decision"] == "refute"
    assert watch.runs("service:retired") == []
    assert stack.llm("retired").pid() is None
    assert stack.pid("retired") is None


INCIDENTS = (
    killed_under_supervisord_comes_back,
    killed_plain_process_comes_back,
    service_killed_for_memory_comes_back,
    stalled_engine_is_restarted,
    long_request_of_a_server_without_metrics_is_left_alone,
    busy_is_refuted_and_left_alone,
    service_that_an_operator_stops_is_left_alone,
)
KILLED, PLAIN, STARVED, STALLED, PATIENT, BUSY, RETIRED = range(7)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("services")
    procfs = folder / "proc"
    procfs.mkdir()
    (procfs / "vmstat").write_text("oom_kill 0\n")
    options = Options(
        gpus=7,
        services=(
            ServiceOptions("killed", gpu=KILLED),
            ServiceOptions("plain", gpu=PLAIN, manager="process"),
            ServiceOptions("starved", gpu=STARVED, settings={"manager": {"procfs": str(procfs)}}),
            ServiceOptions(
                "stalled",
                "vllm",
                gpu=STALLED,
                models=(f"{LARGE}=16GiB",),
                flags=("--gpu-memory-utilization=0.8",),
            ),
            ServiceOptions("patient", gpu=PATIENT, flags=("--parallel=1",)),
            ServiceOptions("busy", gpu=BUSY),
            ServiceOptions("retired", gpu=RETIRED),
        ),
        exporter_flags=(f"--path.procfs={procfs}",),
        remediator_settings={
            "limits": ROOM,
            "timing": {"stalled_after": "20s", "canary_timeout": "8s"},
        },
    )
    with Stack(folder / "run", options) as running:
        models_are_known(running)
        yield running


def _procfs(stack: Stack) -> Path:
    return stack.run.path.parent / "proc"


@pytest.fixture(scope="module")
def played(stack: Stack) -> Iterator[Played]:
    with side_by_side(stack, INCIDENTS) as playing:
        yield playing


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda told: told.__name__)
def test_incident(incident: Incident, played: Played) -> None:
    played.came_to_its_end(incident)


def test_no_gpu_was_touched_and_nobody_was_called(stack: Stack) -> None:
    assert stack.writes() == []
    assert stack.on_call() == []
