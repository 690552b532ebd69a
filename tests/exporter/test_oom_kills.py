"""The kills for memory that the kernel log tells of: as the exporter keeps them and shows them."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.clock import SystemClock
from exporter.config import Config
from exporter.environment import Environment
from exporter.kernel_log import KernelLog, LogBatch, LoggedKill
from exporter.oom_kills import KEPT, OomKills
from exporter.oom_lines import Killed
from exporter.service import Service, ServiceOptions
from exporter.web.app import ExporterApp
from tests.exporter.fakes import FakeClock
from tests.exporter.test_kernel_log import Kmsg, Sink, record
from tests.nvml_standin import Driver
from tests.waiting import poll

FIGURES = "total-vm:9kB, anon-rss:9kB, file-rss:9kB, shmem-rss:0kB, UID:0 pgtables:9kB"
OLLAMA = "/system.slice/ollama.service"


def kill(pid: int, name: str = "ollama", cause: str = "Out of memory") -> str:
    return f"{cause}: Killed process {pid} ({name}) {FIGURES} oom_score_adj:0"


def batch(*pids: int, **more: Any) -> LogBatch:
    kills = tuple(LoggedKill(Killed(pid, "x", "host"), 5.0, pid) for pid in pids)
    return LogBatch(kills=kills, **more)


def followed(*records: bytes | Exception, clock=None, path: Path) -> tuple[Sink, OomKills]:
    sink = Sink()
    kills = OomKills("boot", sink)
    path.touch()
    log = KernelLog(path, kills, clock or FakeClock(), Kmsg(*records))
    log.start()
    poll(lambda: sink.caught_up or sink.unreadable)
    log.stop()
    return sink, kills


def test_a_kill_is_told_beside_the_xids_with_the_time_of_the_kernel(tmp_path) -> None:
    clock = FakeClock(now=1000.0)
    xid = record("NVRM: Xid (PCI:0000:17:00): 79, x", 1)
    sink, kills = followed(xid, record(kill(12), 2, 900_000_000), clock=clock, path=tmp_path / "k")
    log = kills.read()
    assert log is not None
    (one,) = log.kills
    assert (one.killed, one.sequence) == (Killed(12, "ollama", "host"), 2)
    assert one.time == clock.time() - clock.monotonic() + 900
    assert [found.xid for found in sink.xids] == [79], "and everything is passed on"


def test_what_a_program_wrote_into_the_log_is_no_kill(tmp_path) -> None:
    written = record(kill(1), 1, priority=8 + 3)
    _, kills = followed(written, record(kill(2), 2), path=tmp_path / "k")
    log = kills.read()
    assert log is not None
    assert [one.killed.pid for one in log.kills] == [2]


def test_only_the_newest_are_kept_in_their_order() -> None:
    kills = OomKills("boot", Sink())
    kills.take_log(batch(*range(1, 101), history=True, caught_up=True))
    kills.take_log(batch(101))
    log = kills.read()
    assert log is not None
    assert [one.killed.pid for one in log.kills] == list(range(102 - KEPT, 102))


def test_none_is_told_before_all_of_before_is_read_and_when_the_log_is_not_read_any_more() -> None:
    sink = Sink()
    kills = OomKills("boot", sink)
    assert kills.read() is None
    kills.take_log(batch(1, history=True))
    assert kills.read() is None, "there may be more"
    kills.take_log(batch(history=True, caught_up=True))
    assert kills.read() is not None
    kills.log_unreadable("it is gone")
    assert kills.read() is None
    assert sink.unreadable == ["it is gone"]


def test_lines_that_the_kernel_overwrote_are_counted(tmp_path) -> None:
    lost = OSError(errno.EPIPE, "Broken pipe")
    _, kills = followed(lost, lost, record(kill(3), 90), path=tmp_path / "k")
    log = kills.read()
    assert log is not None
    assert (log.lost, len(log.kills)) == (2, 1)


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., Service]]:
    """Starts the whole exporter on the stand-in driver, beside a kernel log that a test writes."""
    driver = Driver(tmp_path / "driver", gpus=1)
    for name, value in driver.env().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "kmsg").touch()
    started: list[Service] = []

    def begin(kmsg: Path | None = tmp_path / "kmsg") -> Service:
        started.append(Service(Config(), ServiceOptions("nvml", sample_interval=0.2, kmsg=kmsg)))
        started[-1].start()
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def host(service: Service) -> dict[str, Any]:
    app = ExporterApp(service.store, service.page, read_host=service.read_host)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/host"}
    return json.loads(b"".join(app(environ, lambda status, head: None)))


def told(service: Service, count: int) -> list[dict[str, Any]]:
    def kills() -> list[dict[str, Any]]:
        log = host(service)["oom_kill_log"]
        return log["kills"] if log is not None and len(log["kills"]) >= count else []

    found: list[dict[str, Any]] = poll(kills)  # type: ignore[assignment]
    assert len(found) == count
    return found


def test_the_whole_exporter_tells_each_once_also_after_a_restart(start, tmp_path) -> None:
    kmsg, sequence = tmp_path / "kmsg", iter(range(1, 99))

    def happens(*messages: str) -> None:
        with kmsg.open("a") as log:
            for message in messages:
                log.write(f"3,{next(sequence)},{time.monotonic_ns() // 1000},-;{message}\n")

    first = start()
    context = (
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
        f"oom_memcg={OLLAMA},task_memcg={OLLAMA},task=ollama,pid=4711,uid=999"
    )
    happens(context, kill(4711, "ol\\x0alama", "Memory cgroup out of memory"))
    (one,) = told(first, 1)
    assert time.time() - 60 < one.pop("timestamp") <= time.time()
    assert one == {
        "sequence": 2,
        "pid": 4711,
        "process": "ol?lama",
        "constraint": "cgroup",
        "cgroup": OLLAMA,
        "unit": "ollama.service",
        "container_id": "",
        "pod_uid": "",
    }
    log = host(first)["oom_kill_log"]
    assert (log["boot_id"], log["lost"]) == (Environment().boot_id(), 0)
    happens(kill(4712))
    second = start()
    assert [one["sequence"] for one in told(second, 2)] == [2, 3]
    happens(kill(4713))
    assert [one["pid"] for one in told(second, 3)] == [4711, 4712, 4713]
    assert [one["sequence"] for one in told(first, 3)] == [2, 3, 4]


def test_without_a_kernel_log_that_is_not_said_to_be_none(start, tmp_path) -> None:
    assert host(start(kmsg=None))["oom_kill_log"] is None
    blind = start(kmsg=tmp_path / "nothing")
    assert host(blind)["oom_kill_log"] is None
    assert host(blind)["available"] is True


def test_the_kills_in_the_log_of_this_machine() -> None:
    path = Path("/dev/kmsg")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        pytest.skip(f"{path} cannot be read here ({error.strerror}): only played ones are tried")
    sink = Sink()
    kills = OomKills("boot", sink)
    log = KernelLog(path, kills, SystemClock())
    log.start()
    poll(lambda: sink.caught_up or sink.unreadable)
    log.stop()
    found = kills.read()
    assert found is not None
    assert all(0 < one.time <= time.time() for one in found.kills)
    assert all(one.killed.pid > 0 and one.killed.constraint for one in found.kills)
