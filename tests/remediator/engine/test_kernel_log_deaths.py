"""A service whose parent alone knows how it ended, and the kernel log: with both real daemons at work."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator import managers
from remediator.clock import SystemClock
from remediator.engine.kernel_kills import KernelKills, Machine
from remediator.errors import NoEvidence
from tests.nvml_standin import Driver
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.processes import PYTHON, child, supervisord
from tests.remediator.engine.test_real_out_of_memory import (
    SERVER,
    TOO_MUCH,
    Live,
    cgroup,  # noqa: F401 - a fixture
)
from tests.waiting import poll

KMSG = Path("/dev/kmsg")
pytestmark = pytest.mark.skipif(
    not Machine().in_first_namespace(),
    reason="NOT tried: in a pid namespace of its own nobody is who the kernel log names",
)


class Adopted(Live):
    """A server that the remediator did not start, so that nobody tells it what ended that."""

    def __init__(self, folder: Path, kmsg: Path, how: list[str], beside: Any) -> None:
        super().__init__(folder, how)
        driver = Driver(folder / "driver", gpus=1)
        address = self.config.exporter.url.removeprefix("http://")
        argv = [PYTHON, "-m", "exporter", "serve", "--backend=nvml", f"--path.kmsg={kmsg}"]
        beside.enter_context(child([*argv, f"--web.listen-address={address}"], env=driver.env()))
        poll(self._log_is_read)
        self.server: subprocess.Popen[bytes] = beside.enter_context(
            child([PYTHON, "-IS", SERVER, str(self.port), *how])
        )
        beside.callback(self.close)
        self.remediator.worker.start()
        poll(self._seen)

    def _log_is_read(self) -> bool:
        with contextlib.suppress(NoEvidence):
            return self.remediator.world.gpus.host().oom_kill_log is not None
        return False

    def _seen(self) -> bool:
        """The remediator knows it as its service, alive and ready."""
        with self.store.reading() as tx:
            kept = json.loads(tx.get_meta("seen_alive:llm") or "{}")
        return bool(kept) and bool(self.known().models)

    def is_recovered(self) -> dict[str, Any]:
        """Wait until it is known for what it was, and runs again; the record of its death."""
        poll(lambda: self.known().out_of_memory)
        self.fire()
        run = self.ended()
        assert (run.playbook, run.state) == ("recover-oom", "succeeded")
        decision = next(one for one in self.sentences("decision") if "recover-oom acts" in one)
        assert "it ran out of the host's memory" in decision
        assert self.known().out_of_memory == 1
        (record,) = (one for one in self.audit if one["event"] == "out_of_memory")
        assert record["data"]["victim"]["pid"] == self.server.pid
        assert record["data"]["kernel_log"]["pid"] == self.server.pid
        assert 0 <= record["data"]["kernel_log"]["age"] < 60
        return record


@pytest.fixture
def adopted(tmp_path: Path) -> Iterator[Callable[..., Adopted]]:
    with contextlib.ExitStack() as beside:
        yield lambda kmsg, *how: Adopted(tmp_path, kmsg, list(how), beside)


def test_one_that_the_kernel_log_names_is_known_for_that_and_recovered(
    adopted: Callable[..., Adopted], tmp_path: Path
) -> None:
    kmsg = tmp_path / "kmsg"
    kmsg.touch()
    one = adopted(kmsg, "limit", str(2**33))
    pid, stamp = one.server.pid, time.monotonic_ns() // 1000
    figures = "total-vm:9kB, anon-rss:9kB, file-rss:9kB, shmem-rss:0kB, UID:0 pgtables:9kB"
    with kmsg.open("a") as log:
        log.write(f"6,1,{stamp},-;{one.server.args[0]} invoked oom-killer: order=0\n")
        log.write(f"3,2,{stamp},-;Out of memory: Killed process {pid} (llm) {figures}\n")
    one.server.kill()
    record = one.is_recovered()
    assert "for want of the host's memory" in record["sentence"]
    assert (record["data"]["kernel_log"]["process"], record["reason"]) == ("llm", "killed")


@pytest.mark.skipif(os.geteuid() != 0, reason="a kill by a memory cgroup NOT tried: needs root")
def test_one_that_the_kernel_really_kills_is_known_by_its_own_log(
    cgroup: Path,  # noqa: F811 - the fixture
    adopted: Callable[..., Adopted],
) -> None:
    try:
        os.close(os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        pytest.skip(f"the log of a real kill NOT read: {KMSG}: {error.strerror}")
    one = adopted(KMSG, "cgroup", str(cgroup))
    with pytest.raises(OSError, match=r"closed|reset"):
        one.ask(TOO_MUCH)
    record = one.is_recovered()
    assert "at the limit of its cgroup" in record["sentence"]
    assert record["data"]["kernel_log"]["constraint"] == "cgroup"


def test_a_program_of_supervisord_is_known_by_what_that_tells_of_it(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(services=("ollama",))
    sleeps = f'command={PYTHON} -c "import time; time.sleep(600)"\nstartsecs=0\n'
    with supervisord(f"[program:ollama]\n{sleeps}") as url:
        context = managers.Context(SystemClock(), dict, lambda identity: None)
        raw = {"type": "supervisord", "url": url, "process": "ollama"}
        identity = managers.create(raw, "ollama", context).start(30)
        KernelKills(bench.world).follow("ollama", identity)
    with bench.store.reading() as tx:
        kept = json.loads(tx.get_meta("seen_alive:ollama") or "{}")
    assert kept["identity"] == identity.to_json()
