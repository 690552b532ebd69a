"""The commands as processes: they start, find each other, and end cleanly."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.simulator.support import CARD, GIB, call
from tests.waiting import poll

MODEL = "llama3.2:3b"


class Command:
    """A simulator process and the first line it prints."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.line)
        assert found, f"it did not start: {self.line}{self.process.stdout.read()}"
        self.url = found[0]
        parts = urlsplit(self.url)
        self.address = (str(parts.hostname), int(parts.port or 0))

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return call(self.address, method, path, body)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def run(*arguments: str) -> Command:
        started.append(Command(*arguments))
        return started[-1]

    yield run
    for command in reversed(started):
        command.end(signal.SIGKILL)


def start_gpus(start: Callable[..., Command], *more: str) -> Command:
    return start("gpus", "--listen", "127.0.0.1:0", *more)


def start_ollama(start: Callable[..., Command], gpus: str, *more: str) -> Command:
    return start(
        *("ollama", "--listen", "127.0.0.1:0", "--gpu-server", gpus, "--gpu", CARD),
        *("--model", f"{MODEL}=8GiB", "--load-seconds", "0", *more),
    )


def card(gpus: Command) -> Any:
    return gpus.call("GET", f"/api/v1/gpus/{CARD}")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_end(start: Callable[..., Command], number: int) -> None:
    gpus = start_gpus(start, "--gpus", "2", "--profile", "h100")
    assert "2 simulated NVIDIA H100" in gpus.line
    ollama = start_ollama(start, gpus.url)
    assert MODEL in ollama.line
    assert (ollama.end(number), gpus.end(number)) == (0, 0)


def test_memory_and_load_show_on_the_card_and_vanish_with_the_process(
    start: Callable[..., Command],
) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    ollama.call("POST", "/api/generate", {"model": MODEL})
    poll(lambda: card(gpus)["memory_used_bytes"] == 8 * GIB)
    assert [one["pid"] for one in card(gpus)["processes"]] == [ollama.process.pid]
    ollama.end(signal.SIGKILL)
    poll(lambda: card(gpus)["memory_used_bytes"] == 0)


def test_load_makes_tokens_and_heat_and_ends_when_its_time_is_up(
    start: Callable[..., Command],
) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url, "--tokens-per-second", "400", "--parallel", "2")
    done: list[subprocess.CompletedProcess[str]] = []
    arguments = ["load", "--endpoint", ollama.url, "--model", MODEL, "--concurrency", "3"]
    command = [sys.executable, "-m", "simulator", *arguments, "--duration", "2"]
    thread = threading.Thread(
        target=lambda: done.append(
            subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        )
    )
    thread.start()
    poll(lambda: card(gpus)["utilization_ratio"] == 1.0)
    poll(lambda: card(gpus)["temperature_celsius"] > 40)
    thread.join()
    found = re.fullmatch(r"load ended: (\d+) answered, 0 failed, (\d+) tokens\n", done[0].stdout)
    assert found, done[0]
    assert int(found[1]) > 0
    assert int(found[2]) == 64 * int(found[1])
    assert done[0].returncode == 0


def test_a_crash_is_an_end_without_warning(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    fault = {"fault": "crash", "exit_code": 7}
    assert ollama.call("POST", "/_simulator/faults", fault)[0] == 200
    assert ollama.process.wait(20) == 7


def test_a_crash_may_be_a_signal(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    fault = {"fault": "crash", "signal": "SIGKILL"}
    assert ollama.call("POST", "/_simulator/faults", fault)[0] == 200
    assert ollama.process.wait(20) == -signal.SIGKILL


def test_a_leak_to_39_gib_is_the_services_and_goes_with_it(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    ollama.call("POST", "/api/generate", {"model": MODEL})
    poll(lambda: card(gpus)["memory_used_bytes"] == 8 * GIB)
    gpus.call("POST", "/api/v1/faults", {"fault": "leak", "gpu": CARD, "to_bytes": 39 * GIB})
    (process,) = card(gpus)["processes"]
    assert (process["pid"], process["memory_bytes"]) == (ollama.process.pid, 39 * GIB)
    ollama.call("POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
    poll(lambda: card(gpus)["memory_used_bytes"] == 31 * GIB)
    ollama.end()
    again = start_ollama(start, gpus.url)
    poll(lambda: card(gpus)["memory_used_bytes"] == 0)
    again.call("POST", "/api/generate", {"model": MODEL})
    poll(lambda: card(gpus)["memory_used_bytes"] == 8 * GIB)


@pytest.mark.parametrize("size", [37, 39])
def test_a_model_nearly_as_big_as_the_card_is_loaded(
    start: Callable[..., Command], size: int
) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url, "--model", f"big={size}GiB")
    ollama.call("POST", "/api/generate", {"model": "big"})
    poll(lambda: card(gpus)["memory_used_bytes"] == size * GIB)
    (loaded,) = ollama.call("GET", "/api/ps")[1]["models"]
    assert loaded["size_vram"] == loaded["size"] == size * GIB


def test_heat_of_a_service_ends_with_its_restart(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start, "--time-scale", "200")
    ollama = start_ollama(start, gpus.url)
    poll(lambda: ollama.call("POST", "/api/generate", {"model": MODEL})[0] == 200)
    poll(lambda: card(gpus)["processes"])
    heat = {"fault": "heat", "gpu": CARD, "celsius": 87, "until_restart": True}
    assert gpus.call("POST", "/api/v1/faults", heat)[0] == 200
    gpus.call("PUT", f"/api/v1/gpus/{CARD}/power-limit", {"watts": 100})
    poll(lambda: card(gpus)["temperature_celsius"] > 86)
    ollama.end()
    again = start_ollama(start, gpus.url)
    again.call("POST", "/api/generate", {"model": MODEL})
    poll(lambda: card(gpus)["temperature_celsius"] < 50)
    assert gpus.call("GET", "/api/v1/faults")[1] == {"faults": []}


def start_vllm(start: Callable[..., Command], gpus: str, *more: str) -> Command:
    return start(
        *("vllm", "--listen", "127.0.0.1:0", "--gpu-server", gpus, "--gpu", CARD),
        *("--model", "llama=8GiB", "--load-seconds", "0", *more),
    )


def test_vllm_takes_its_share_of_the_card_and_answers(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    vllm = start_vllm(start, gpus.url, "--gpu-memory-utilization", "0.5")
    assert "llama" in vllm.line
    poll(lambda: card(gpus)["memory_used_bytes"] == 20 * GIB)
    assert vllm.call("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 2})[0] == 200
    command = [sys.executable, "-m", "simulator", "load", "--dialect", "vllm", "--model", "llama"]
    done = subprocess.run(
        [*command, "--endpoint", vllm.url, "--duration", "1", "--tokens", "2"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = re.fullmatch(r"load ended: (\d+) answered, 0 failed, (\d+) tokens\n", done.stdout)
    assert found, done
    assert int(found[2]) == 2 * int(found[1]) > 0
    assert vllm.end() == 0
    poll(lambda: card(gpus)["memory_used_bytes"] == 0)


def test_vllm_does_not_start_on_a_card_that_is_full(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    gpus.call("POST", "/api/v1/faults", {"fault": "leak", "gpu": CARD, "to_bytes": 20 * GIB})
    arguments = ["vllm", "--listen", "127.0.0.1:0", "--gpu-server", gpus.url, "--gpu", CARD]
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *arguments, "--model", "llama=8GiB"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "is less than desired GPU memory utilization" in done.stderr


def test_vllm_listens_only_once_it_is_loaded_and_may_be_ended_before(
    start: Callable[..., Command],
) -> None:
    gpus = start_gpus(start)
    arguments = ["vllm", "--listen", "127.0.0.1:0", "--gpu-server", gpus.url, "--gpu", CARD]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "simulator"),
            *arguments,
            "--model",
            "l=8GiB",
            "--load-seconds=600",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        poll(lambda: card(gpus)["processes"])
    finally:
        process.terminate()
        output = process.communicate(timeout=20)[0]
    assert (process.returncode, output) == (0, "")


def test_vllm_ends_with_its_engine(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    vllm = start_vllm(start, gpus.url)
    gpus.call("POST", "/api/v1/faults", {"fault": "lose", "gpu": CARD})
    body = {"prompt": "hi", "max_tokens": 2}
    poll(lambda: vllm.call("POST", "/v1/completions", body)[0] == 500)
    assert vllm.call("GET", "/health")[0] == 503
    assert vllm.process.wait(20) == 1


def test_the_service_serves_on_without_the_gpu_server(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    gpus.end()
    body = {"model": MODEL, "prompt": "hi", "stream": False, "options": {"num_predict": 2}}
    status, answer = ollama.call("POST", "/api/generate", body)
    assert (status, answer["eval_count"]) == (200, 2)


def test_a_lost_card_reaches_the_service(start: Callable[..., Command]) -> None:
    gpus = start_gpus(start)
    ollama = start_ollama(start, gpus.url)
    gpus.call("POST", "/api/v1/faults", {"fault": "lose", "gpu": CARD})
    body = {"model": MODEL, "prompt": "hi", "stream": False, "options": {"num_predict": 1}}
    poll(lambda: ollama.call("POST", "/api/generate", body)[0] == 500)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpus", "--listen", "9950"], "HOST:PORT"),
        (["gpus", "--gpus", "99"], "--gpus"),
        (["gpus", "--time-scale", "0"], "--time-scale"),
        (["ollama", "--gpu-server", "ftp://x", "--gpu", "G"], "--gpu-server"),
        (["ollama", "--gpu-server", "http://x", "--gpu", "G", "--model", "x"], "--model"),
        (["ollama", "--gpu-server", "http://x", "--gpu", "G", "--parallel", "0"], "--parallel"),
        (["vllm", "--gpu-server", "http://x", "--gpu", "G", "--model", "x"], "--model"),
        (
            ["vllm", "--gpu-server", "http://x", "--gpu", "G", "--model", "x=1GiB", "--parallel=0"],
            "--parallel",
        ),
        (
            [
                *("vllm", "--gpu-server", "http://x", "--gpu", "G", "--model", "x=1GiB"),
                "--gpu-memory-utilization=92",
            ],
            "--gpu-memory-utilization",
        ),
        (["load", "--model", "x", "--tokens", "0"], "--tokens"),
        (["load", "--endpoint", "http://example.com", "--model", "x"], "loopback"),
        (["load", "--model", "x", "--concurrency", "100000"], "--concurrency"),
        (["load", "--model", "x", "--duration", "-1"], "--duration"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_1(arguments: list[str], says: str) -> None:
    from simulator.cli import main

    error = run_main(main, arguments)
    assert says in error
    assert error.count("\n") == 1


def run_main(main: Callable[[list[str]], int], arguments: list[str]) -> str:
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stderr(output):
        assert main(arguments) == 1
    return output.getvalue()


def test_a_port_in_use_is_one_line_that_names_it(start: Callable[..., Command]) -> None:
    from simulator.cli import main

    gpus = start_gpus(start)
    listen = f"{gpus.address[0]}:{gpus.address[1]}"
    error = run_main(main, ["gpus", "--listen", listen])
    assert listen in error
    assert "--listen" in error
    assert gpus.process.poll() is None
