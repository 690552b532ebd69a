"""A real `llama-server` that cannot allocate: what it says, what is made of it, and its recovery.

Needs what test_llama_server_real.py needs. Its context is too large for the address space that it is
given; with less load (a context that fits) it comes up.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.remediator.drivers.test_llama_server_real import SERVER, write_model
from tests.remediator.engine.test_real_out_of_memory import Live, retried
from tests.waiting import poll

pytestmark = pytest.mark.skipif(
    not (os.environ.get("REAL_SERVERS") or os.environ.get("REAL_DRIVERS"))
    or SERVER is None
    or importlib.util.find_spec("gguf") is None,
    reason="real llama-server NOT tested: needs `make real-servers`, llama-server, PyPI's gguf",
)
LIMIT = 600_000 * 1024
TOO_LARGE, FITS = "2000000", "4096"


class LiveLlama(Live):
    """The remediator over a llama-server that was started, and cannot allocate any more."""

    driver = "llamacpp"

    def process(self, context: str) -> dict[str, Any]:
        # The limit holds for the server alone: prlimit sets it and becomes the server.
        command = [shutil.which("prlimit") or "prlimit", f"--as={LIMIT}", str(SERVER)]
        command += ["-m", str(self.folder / "tiny.gguf"), "-a", "tiny", "-c", context]
        command += ["-t", "1", "-np", "1", "-fit", "off", "--host", "127.0.0.1"]
        command += ["--port", str(self.port)]
        environment = {"HOME": str(self.folder)}
        return {
            "type": "process",
            "command": command,
            "log_file": str(self.folder / "log"),
            "environment": environment,
        }


def test_one_that_cannot_allocate_is_known_for_that_and_comes_up_with_less_load(
    tmp_path: Path,
) -> None:
    write_model(tmp_path / "tiny.gguf")
    one = LiveLlama(tmp_path, [TOO_LARGE], models=["tiny"], degraded=[FITS])
    try:
        one.begin(ready=False)
        poll(lambda: one.known().out_of_memory)
        one.fire()
        assert set(retried(one)) <= {"ConnectionRefusedError", "HTTP 503"}, "clear, until it is up"
        assert one.ask(1)["choices"]
        run = one.ended()
        assert (run.playbook, run.state) == ("recover-oom", "succeeded")
        assert one.loaded() == ["tiny"]
        said = one.sentences("out_of_memory")[0]
        assert said.startswith("llm ran out of memory: its log says the host's memory: ")
        with one.store.reading() as tx:
            steps = {step.action: step.state for step in tx.runs.steps(run.id)}
        assert steps == dict.fromkeys(
            ("settle", "check", "lower_load", "restart_service", "wait_ready"), "done"
        ) | {"load_models": "done", "canary": "done"}
    finally:
        one.close()
