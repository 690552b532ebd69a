"""The command as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest

from exporter import cli, options
from exporter.errors import ConfigError
from exporter.inventory import FILE_NAME


@pytest.fixture(autouse=True)
def own_environment(monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("GPU_EXPORTER_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def simulated(simulator) -> tuple[str, str]:
    return "--backend=simulated", f"--simulator.url={simulator.url}"


class Serving:
    """A served exporter and its address, taken from its log."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "exporter", "serve"]
        self.process = subprocess.Popen(
            [*command, "--web.listen-address=127.0.0.1:0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = ""
        found = None
        while not found:
            line = self.process.stderr.readline()
            assert line, f"it ended: {self.log}"
            self.log += line
            found = re.search(r"listening on (http://\S+:\d+)", line)
        self.url = found[1].rstrip('"}')

    def get(self, path: str) -> tuple[int, str]:
        return self.call("GET", path)

    def call(self, method: str, path: str, token: str = "", body: str = "") -> tuple[int, str]:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            data=body.encode() or None,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=20)
        self.log += rest
        return self.process.returncode


@pytest.fixture
def serving(simulator, tmp_path):
    made = Serving(
        *simulated(simulator),
        "--sample-interval=0.2",
        "--log.format=json",
        f"--storage.path={tmp_path / 'state'}",
        f"--container.socket={tmp_path / 'none.sock'}",
    )
    yield made
    if made.process.poll() is None:
        made.end()


def test_it_serves_until_told_to_stop(serving, eventually, tmp_path) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    assert 'gpu_up{gpu="0",uuid="GPU-sim-0"} 1.0' in serving.get("/metrics")[1]
    assert len(json.loads(serving.get("/api/gpus")[1])["gpus"]) == 2
    assert serving.get("/nothing")[0] == 404
    assert (tmp_path / "state" / FILE_NAME).exists()
    assert serving.end() == 0
    lines = [json.loads(line) for line in serving.log.splitlines()]
    assert lines[-1]["message"] == "stopped"
    assert sum("--container.socket" in line["message"] for line in lines) == 1


def test_an_interrupt_is_a_clean_end_too(serving, eventually) -> None:
    eventually(lambda: serving.get("/-/healthy")[0] == 200)
    assert serving.end(signal.SIGINT) == 0
    assert "Traceback" not in serving.log


def test_a_gpu_hidden_behind_a_hang_costs_no_scrape(serving, simulator, eventually) -> None:
    eventually(lambda: serving.get("/-/ready")[0] == 200)
    simulator.block("GPU-sim-0")
    eventually(lambda: 'gpu_fault{gpu="0",reason="timeout"' in serving.get("/metrics")[1])
    page = serving.get("/metrics")[1]
    assert 'gpu_temperature_celsius{gpu="1"' in page
    assert 'gpu_temperature_celsius{gpu="0"' not in page


def test_the_driver_is_let_go_and_taken_back_over_http(simulator, tmp_path, eventually) -> None:
    token = "let-go-of-all-the-cards"
    (tmp_path / "token").write_text(token + "\n")
    file = f"--web.release-token-file={tmp_path / 'token'}"
    serving = Serving(*simulated(simulator), "--sample-interval=0.2", file)
    worker = psutil.Process(serving.process.pid)
    try:
        eventually(lambda: serving.get("/-/ready")[0] == 200)
        assert serving.call("POST", "/-/release", "wrong" * 5)[0] == 401
        assert len(worker.children()) == 1
        status, answer = serving.call("POST", "/-/release", token, '{"seconds": 60}')
        assert (status, json.loads(answer)["released"]) == (200, True)
        assert worker.children() == []
        gpus = json.loads(serving.get("/api/gpus")[1])["gpus"]
        assert [(gpu["up"], gpu["fault"], gpu["temperature"]) for gpu in gpus] == [
            (False, "released", None),
            (False, "released", None),
        ]
        assert serving.get("/-/ready")[0] == 200
        status, answer = serving.call("DELETE", "/-/release", token)
        assert (status, json.loads(answer)) == (200, {"released": False, "until": None})
        eventually(lambda: json.loads(serving.get("/api/gpu/0")[1])["gpu"]["temperature"] == 64)
    finally:
        assert serving.end() == 0
    assert token not in serving.log


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--backend=simulated", f"--web.listen-address=127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"127.0.0.1:{port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_dump_text_and_json(simulator) -> None:
    text = run("dump", *simulated(simulator))
    assert text.returncode == 0
    assert 'gpu_power_watts{gpu="1",uuid="GPU-sim-1"} 210.0' in text.stdout
    assert "gpu_process_memory_used_bytes{" in text.stdout
    body = json.loads(run("dump", "--json", *simulated(simulator)).stdout)
    assert [gpu["uuid"] for gpu in body["gpus"]] == ["GPU-sim-0", "GPU-sim-1"]


@pytest.mark.parametrize(
    ("celsius", "code", "says"),
    [(60.0, 0, "healthy"), (84.0, 1, "cap power to 80 %"), (91.0, 2, "stop the LLM service")],
)
def test_check_tells_a_person_and_a_script(simulator, celsius, code, says) -> None:
    simulator.gpus["GPU-sim-1"]["temperature_celsius"] = celsius
    done = run("check", *simulated(simulator))
    assert done.returncode == code
    assert says in done.stdout
    assert "GPU 0: Simulated A100  GPU-sim-0" in done.stdout
    body = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert body["gpus"][1]["temperature"] == celsius


def test_check_without_a_gpu_is_a_two_with_the_reason() -> None:
    done = run("check", "--backend=simulated", "--simulator.url=http://127.0.0.1:1")
    assert done.returncode == 2
    assert "start it with" in done.stdout


def test_doctor_says_what_to_do(simulator) -> None:
    well = run("doctor", *simulated(simulator))
    assert (well.returncode, "PROBLEM" in well.stdout) == (0, False)
    ill = run("doctor", "--backend=simulated", "--simulator.url=http://127.0.0.1:1")
    assert ill.returncode == 1
    assert "PROBLEM  backend simulated: driver_not_loaded" in ill.stdout


def test_inventory_reset(tmp_path, capsys) -> None:
    (tmp_path / FILE_NAME).write_text('{"version": 1, "gpus": []}')
    reset = ["inventory", "reset", f"--storage.path={tmp_path}"]
    assert cli.main(reset) == 0
    assert not (tmp_path / FILE_NAME).exists()
    assert cli.main(reset) == 0
    assert cli.main(["inventory", "reset"]) == 2
    assert "--storage.path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--backend=replay:x"], "cannot read"),
        (["serve", "--backend=amd"], "choose from auto, jetson, nvidia-smi, nvml"),
        (["serve", "--web.listen-address=9940"], "HOST:PORT"),
        (["serve", "--web.telemetry-path=metrics"], "--web.telemetry-path"),
        (["serve", "--log.level=loud"], "--log.level"),
        (["serve", "--web.release-token-file=/nonexistent"], "put a random line there"),
        (["serve", "--path.procfs=/nonexistent"], "mount the host's /proc"),
        (["dump", "--config.file=/nonexistent.yml"], "cannot read"),
    ],
)
def test_what_is_not_understood_is_said_in_one_line(capsys, arguments, says) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_flag_beats_its_environment_variable() -> None:
    environ = {
        "GPU_EXPORTER_WEB_LISTEN_ADDRESS": "127.0.0.1:1",
        "GPU_EXPORTER_BACKEND": "simulated",
        "GPU_EXPORTER_SAMPLE_INTERVAL": "2",
    }
    flags = options.parse(["serve", "--web.listen-address=127.0.0.1:2"], environ)
    assert flags.listen_address == "127.0.0.1:2"
    assert (flags.backend, flags.sample_interval) == ("simulated", 2.0)
    with pytest.raises(ConfigError):
        options.parse(["serve"], {"GPU_EXPORTER_BACKEND": "amd"})


def test_a_sample_interval_that_cannot_be_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--sample-interval=0"])
    assert "seconds from 0.1 to 60" in capsys.readouterr().err
