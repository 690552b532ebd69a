"""The host's memory and OOM kills: on the page, at /api/host, and in what the commands print."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest

from exporter.check import report
from exporter.host import HostReader
from exporter.page import Page
from exporter.web.app import ExporterApp
from tests.exporter.fakes import Bench

MEMINFO = (
    b"MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    150 kB\nSwapTotal: 7 kB\n"
)
VMSTAT = b"nr_free_pages 5\noom_kill 3\noom_kill_other 9\n"
KIB = 1024


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.sample()
    return made


@pytest.fixture
def procfs(tmp_path):
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "meminfo").write_bytes(MEMINFO)
    (folder / "vmstat").write_bytes(VMSTAT)
    return folder


def get(bench: Bench, read_host, path: str) -> tuple[int, bytes]:
    seen = []
    app = ExporterApp(bench.store, Page(bench.store, read_host), read_host=read_host)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path}
    body = b"".join(app(environ, lambda status, head: seen.append(int(status[:3]))))
    return seen[0], body


def host(bench: Bench, procfs) -> tuple[int, dict]:
    status, body = get(bench, HostReader((), bench.clock, procfs).read_memory, "/api/host")
    return status, json.loads(body)


def series(bench: Bench, procfs, mountpoints=()) -> dict[str, float]:
    _, page = get(bench, HostReader(mountpoints, bench.clock, procfs).read, "/metrics")
    lines = [line for line in page.decode().splitlines() if line.startswith("host_")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_both_say_the_same(bench, procfs) -> None:
    assert host(bench, procfs) == (
        200,
        {
            "available": True,
            "memory": {
                "total_bytes": 1000 * KIB,
                "available_bytes": 150 * KIB,
                "used_ratio": 0.85,
            },
            "oom_kills": 3,
            "oom_kill_log": None,
            "timestamp": bench.clock.time(),
        },
    )
    assert series(bench, procfs) == {
        "host_memory_total_bytes": 1000 * KIB,
        "host_memory_available_bytes": 150 * KIB,
        "host_oom_kills_total": 3,
    }


def test_a_filesystem_that_is_not_there_is_left_out(bench, procfs, tmp_path) -> None:
    found = series(bench, procfs, (str(tmp_path), "/nonexistent"))
    sizes = {name: value for name, value in found.items() if "filesystem" in name}
    assert {name.partition("{")[0] for name in sizes} == {
        "host_filesystem_size_bytes",
        "host_filesystem_free_bytes",
    }
    assert all(f'mountpoint="{tmp_path}"' in name for name in sizes)
    assert bench.store.snapshot().errors == {("host", "not_found"): 1}


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.EACCES, "no_permission"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.ESTALE, "unknown"),
    ],
)
def test_why_a_filesystem_is_left_out_is_counted(bench, procfs, number, word) -> None:
    def statvfs(path: str) -> os.statvfs_result:
        raise OSError(number, os.strerror(number))

    get(bench, HostReader(("/",), bench.clock, procfs, statvfs).read, "/metrics")
    assert bench.store.snapshot().errors == {("host", word): 1}


@pytest.mark.parametrize(
    ("file", "content", "absent", "present"),
    [
        ("vmstat", None, {"oom"}, {"total", "available"}),
        ("vmstat", b"oom_kill many\n", {"oom"}, {"total", "available"}),
        ("vmstat", b"oom_kill -1\n", {"oom"}, {"total", "available"}),
        ("meminfo", None, {"total", "available"}, {"oom"}),
        ("meminfo", b"", {"total", "available"}, {"oom"}),
        ("meminfo", b"\xff\xfe\x00MemTotal", {"total", "available"}, {"oom"}),
        ("meminfo", b"MemTotal: 1000 kB\n", {"available"}, {"total", "oom"}),
        ("meminfo", b"MemTotal: 1000 kB\nMemAvailable: -5 kB\n", {"available"}, {"total", "oom"}),
        ("meminfo", b"MemTotal: 0 kB\nMemAvailable: 0 kB\n", {"total"}, {"oom"}),
        (
            "meminfo",
            b"MemTotal: 1000 kB\nMemAvailable: 1001 kB\n",
            {"total", "available"},
            {"oom"},
        ),
    ],
)
def test_what_cannot_be_read_is_left_out_and_nothing_else(
    bench, procfs, file, content, absent, present
) -> None:
    (procfs / file).unlink()
    if content is not None:
        (procfs / file).write_bytes(content)
    status, body = host(bench, procfs)
    values = {
        "total": body["memory"]["total_bytes"],
        "available": body["memory"]["available_bytes"],
        "oom": body["oom_kills"],
    }
    assert status == 200
    assert {name for name, value in values.items() if value is None} >= absent
    assert {name for name, value in values.items() if value is not None} >= present
    assert (body["memory"]["used_ratio"] is None) is bool(absent & {"total", "available"})
    names = {"total": "memory_total", "available": "memory_available", "oom": "oom_kills"}
    page = " ".join(series(bench, procfs))
    assert {name for name, word in names.items() if word in page} == {
        name for name, value in values.items() if value is not None
    }


def test_without_any_it_says_so(bench, tmp_path) -> None:
    status, body = host(bench, tmp_path / "nothing")
    assert (status, body["available"]) == (503, False)
    assert "--path.procfs" in body["error"]
    assert series(bench, tmp_path / "nothing") == {}


def test_switched_off_there_is_none(bench) -> None:
    status, body = get(bench, None, "/api/host")
    assert status == 503
    assert json.loads(body) == {
        "available": False,
        "error": "host metrics are switched off (host_metrics.enabled)",
    }
    assert b"host_memory" not in get(bench, None, "/metrics")[1]


def checked(bench: Bench, procfs=None) -> tuple[str, dict, int]:
    reading = None if procfs is None else HostReader((), bench.clock, procfs).read_memory()
    text, code = report(bench.store.snapshot(), reading)
    block, _, body = text.partition("\n{")
    return block, json.loads("{" + body), code


def test_check_shows_the_host_and_its_code_is_that_of_the_gpus(bench, procfs) -> None:
    block, body, code = checked(bench, procfs)
    assert "memory              0.0 of 0.0 GiB (85%)" in block
    assert "OOM kills           3 since boot" in block
    assert (body["host"]["oom_kills"], code) == (3, 0)
    block, body, _ = checked(bench)
    assert "Host" not in block
    assert body["host"]["available"] is False
    (procfs / "meminfo").unlink()
    assert "memory              not available" in checked(bench, procfs)[0].partition("Host")[2]


def test_check_shows_what_the_driver_asks_for(bench) -> None:
    assert "recovery action     not available" in checked(bench)[0]
    bench.health(recovery_action="none")
    assert "recovery action     none" in checked(bench)[0]
    bench.health(recovery_action="reset")
    block, _, code = checked(bench)
    assert "recovery action     reset" in block
    assert code == 2


def test_check_shows_the_xid_errors_that_matter_the_critical_first(bench) -> None:
    assert "Xid errors          none that matters heard of" in checked(bench)[0]
    for xid in (13, 43, 79, 79, 4711):
        bench.xid("GPU-0", xid)
    line = next(one for one in checked(bench)[0].splitlines() if "Xid errors" in one)
    told = line.split("errors")[1].strip().split("; ")
    assert [one.split()[0] for one in told] == ["79", "13", "4711"]
    assert told[0].startswith("79 (critical, GPU has fallen off the bus) 2 times, last 20")
    assert "not in our table" in told[2]
    bench.enumerate(bench.gpu().info, watched=[])
    assert "Xid errors          not available" in checked(bench)[0]


def test_a_filesystem_that_does_not_answer_holds_up_no_page(
    bench, procfs, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("exporter.host._PATIENCE_SECONDS", 0.5)
    answers = threading.Event()
    asked: list[str] = []

    def statvfs(path: str) -> os.statvfs_result:
        asked.append(path)
        if path == "/models":
            assert answers.wait(30)
        return os.statvfs("/")

    reader = HostReader(("/models", "/"), bench.clock, procfs, statvfs)

    def mountpoints() -> set[str]:
        bench.clock.now += 10
        return {one.mountpoint for one in reader.read().filesystems}

    try:
        for _ in range(3):
            assert mountpoints() == {"/"}
        assert asked.count("/models") == 1, "one look at a time"
        _, page = get(bench, reader.read, "/metrics")
        assert b"gpu_up{" in page
        # Each page that lacks it is an error.
        get(bench, reader.read, "/metrics")
        assert bench.store.snapshot().errors == {("host", "timeout"): 2}
    finally:
        answers.set()
    eventually(lambda: mountpoints() == {"/models", "/"})


def test_a_mount_point_that_is_named_twice_is_one_series(bench, procfs) -> None:
    _, page = get(bench, HostReader(("/", "/"), bench.clock, procfs).read, "/metrics")
    assert page.count(b"host_filesystem_size_bytes{") == 1
