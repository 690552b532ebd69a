"""The whole stack, really started: it becomes ready, says what is wrong, and leaves nothing."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.errors import NotReady, StackError, Unreachable
from deploy.local.http import answers, request
from deploy.local.options import Options, ServiceOptions
from deploy.local.ports import HOST, Ports
from deploy.local.stack import Stack
from deploy.local.waiting import poll

pytestmark = pytest.mark.e2e

PROGRAMS = (
    "simulator",
    "exporter",
    "prometheus",
    "alertmanager",
    "on-call",
    "ollama",
    "second",
    "remediator",
)
LARGE = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    second = ServiceOptions(
        "second",
        "vllm",
        gpu=1,
        models=(f"{LARGE}=16GiB",),
        flags=("--gpu-memory-utilization=0.8",),
    )
    options = Options(gpus=2, services=(ServiceOptions(), second))
    with Stack(tmp_path_factory.mktemp("stack"), options) as running:
        yield running


def listening(ports: Ports) -> list[int]:
    taken = []
    for port in vars(ports).values():
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                taken.append(port)
    return taken


def test_every_program_runs_and_every_target_is_scraped(stack: Stack) -> None:
    for program in PROGRAMS:
        assert stack.pid(program), program
    up = "count(up == 1)"
    assert poll(lambda: stack.query(up) and stack.query(up)[0]["value"][1] == "4", timeout=60)
    assert {gpu["uuid"] for gpu in stack.gpus()} == {gpu["uuid"] for gpu in stack.simulated_gpus()}
    assert len(stack.gpus()) == 2


def test_the_service_holds_its_model_and_answers(stack: Stack) -> None:
    assert stack.loaded_models() == list(stack.options.model_names)
    assert stack.generate(stack.options.model_names[0], "Hello")["done"] is True
    assert stack.service_pid() == stack.pid("ollama")


def test_each_service_is_one_of_its_own(stack: Stack) -> None:
    first, second = stack.llm(), stack.llm("second")
    assert (first.name, first.loaded_models()) == ("ollama", list(stack.options.model_names))
    assert second.loaded_models() == [LARGE]
    assert second.generate(LARGE, "Hello", tokens=2)["choices"]
    assert second.pid() == stack.pid("second") != first.pid()
    gpus = [gpu["uuid"] for gpu in stack.gpus()]
    assert {one["name"]: one["gpus"] for one in stack.services()} == {
        "ollama": gpus[:1],
        "second": gpus[1:],
    }
    with pytest.raises(StackError, match="no LLM service third"):
        stack.llm("third")


def test_load_flows_to_one_service_until_it_is_stopped(stack: Stack) -> None:
    def tokens() -> float:
        return stack.metric("remediator", "llm_service_progress_total", llm_service="second") or 0

    before, service = tokens(), stack.llm("second")
    service.start_load()
    assert poll(lambda: tokens() > before, timeout=30)
    service.stop_load()
    assert stack.pid("load-second") is None


def test_nothing_is_wrong_with_a_fresh_stack(stack: Stack) -> None:
    assert stack.alerts() == []
    assert stack.writes() == []
    assert stack.on_call() == []
    assert stack.runs() == []


def test_the_audit_needs_its_token(stack: Stack) -> None:
    assert isinstance(stack.audit(), list)
    with pytest.raises(Unreachable, match="401"):
        request("GET", f"{stack.urls.remediator}/api/v1/audit")


def test_metrics_are_read_by_name_and_labels(stack: Stack) -> None:
    uuid = stack.gpus()[0]["uuid"]
    assert stack.metric("exporter", "gpu_up", uuid=uuid) == 1
    assert stack.metric("exporter", "gpu_up", uuid="GPU-other") is None


def test_a_killed_program_comes_back_and_a_restart_gives_a_new_one(stack: Stack) -> None:
    killed = stack.kill("on-call")
    assert poll(lambda: stack.pid("on-call") not in {None, killed}, timeout=60)
    before = stack.pid("on-call")
    stack.restart("on-call")
    assert stack.pid("on-call") not in {None, before}


def test_an_injected_fault_reaches_the_exporter_and_is_cleared(stack: Stack) -> None:
    fault = stack.inject("lose", gpu=1)
    assert poll(lambda: [gpu["up"] for gpu in stack.gpus()] == [True, False], timeout=60)
    stack.clear(fault)
    assert poll(lambda: all(gpu["up"] for gpu in stack.gpus()), timeout=40)
    with pytest.raises(StackError, match="no simulated GPU 7"):
        stack.inject("lose", gpu=7)


def test_a_program_that_ends_early_is_named_with_its_last_lines(tmp_path: Path) -> None:
    failing = Stack(tmp_path, Options(exporter_settings={"no_such_setting": 1}))
    with pytest.raises(NotReady, match=r"exporter ended .*\n?.*no_such_setting") as caught:
        failing.start()
    assert str(failing.run.log("exporter")) in str(caught.value)
    assert listening(failing.ports) == []


@pytest.fixture
def driver_environment(tmp_path: Path) -> dict[str, str]:
    from tests.nvml_standin import build

    return {"LD_LIBRARY_PATH": str(build()), "NVML_STANDIN_DIR": str(tmp_path / "driver")}


def test_a_write_through_the_driver_library_reaches_the_simulated_card(
    tmp_path: Path, driver_environment: dict[str, str]
) -> None:
    options = Options(
        backend="nvml",
        gpus=4,
        driver_dir=Path(driver_environment["NVML_STANDIN_DIR"]),
        driver_environment=driver_environment,
    )
    with Stack(tmp_path / "run", options) as stack:
        uuids = [gpu["uuid"] for gpu in stack.simulated_gpus()]
        assert [gpu["uuid"] for gpu in stack.gpus()] == uuids
        stack.inject("heat", gpu=2, celsius=84.5, immediate=True)
        write = poll(stack.writes, timeout=40)
        assert write
        assert (write[0]["uuid"], write[0]["source"]) == (uuids[2], "nvml")


def test_a_stopped_stack_says_so(tmp_path: Path) -> None:
    stopped = Stack(tmp_path)
    with pytest.raises(StackError, match="does not run"):
        stopped.pid("exporter")
    assert not answers(stopped.urls.exporter)
    stopped.stop()
