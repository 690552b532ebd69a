"""Who a pid is, on recorded and broken /proc trees."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import worker
from exporter.attribution import Attributor, cap, in_first_namespace, processes_root
from exporter.backends.base import BackendOptions
from exporter.clock import SystemClock
from exporter.config import Config
from exporter.device_sampler import Schedule
from exporter.readings import ProcessUse
from exporter.service import Service, ServiceOptions
from exporter.worker import WorkerOptions
from tests.exporter.fakes import FakeClock
from tests.nvml_standin import Driver, DriverProcess
from tests.waiting import poll

ID = "3f1d6cba" * 8
POD = "b6a16766-05ee-446a-8ee5-ff96a817f47c"
FIRST = "pid:[4026531836]"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of the namespace that the machine began with."""
    namespace(tmp_path, FIRST)
    return tmp_path


def namespace(proc: Path, name: str) -> None:
    (proc / "1" / "ns").mkdir(parents=True)
    (proc / "1" / "ns" / "pid").symlink_to(name)
    (proc / "self").symlink_to("1")


def process(
    proc: Path,
    pid: int,
    comm: str | bytes,
    cgroup: str = "0::/\n",
    cmdline: str | bytes = "",
    start: int = 5,
    state: str = "S",
) -> Path:
    directory = proc / str(pid)
    directory.mkdir(parents=True, exist_ok=True)
    fields = " ".join([state, *["0"] * 18, str(start), "0"])
    name = comm if isinstance(comm, bytes) else comm.encode()
    (directory / "stat").write_bytes(b"%d (%s) %s\n" % (pid, name, fields.encode()))
    (directory / "cgroup").write_text(cgroup)
    arguments = directory / "cmdline"
    arguments.write_bytes(cmdline if isinstance(cmdline, bytes) else cmdline.encode())
    return directory


def attributor(proc: Path, names=None) -> Attributor:
    # Patient: a busy machine must not cost a name here.
    return Attributor(proc, SystemClock(), names, patience=30)


def name(proc: Path, pid: int = 7, **more) -> ProcessUse:
    return attributor(proc).name([ProcessUse(pid, **more)])[0]


def test_name_and_unit(proc) -> None:
    process(proc, 7, "ollama", "0::/system.slice/ollama.service\n")
    assert name(proc) == ProcessUse(7, "ollama", "ollama.service")


def test_a_container_is_called_by_its_id_where_its_name_is_not_known(proc) -> None:
    kubernetes = f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice"
    process(proc, 7, "vllm", f"0::{kubernetes}/cri-containerd-{ID}.scope\n")
    assert name(proc) == ProcessUse(
        7, "vllm", f"cri-containerd-{ID}.scope", ID[:12], container_id=ID, pod_uid=POD
    )


def test_a_container_gets_its_name_from_the_engine(proc) -> None:
    class Names:
        def of(self, container_id: str) -> str:
            return {ID: "vllm"}[container_id]

    process(proc, 7, "python3", f"0::/docker/{ID}\n")
    process(proc, 8, "ollama")
    found = attributor(proc, Names()).name([ProcessUse(7), ProcessUse(8)])
    assert [one.container_name for one in found] == ["vllm", ""]


def test_a_name_that_the_kernel_cut_is_completed_without_arguments(proc) -> None:
    process(proc, 7, "text-generation", "", "/opt/bin/text-generation-server\0--token\0s3cret")
    assert name(proc).process == "text-generation-server"


@pytest.mark.parametrize(
    "title",
    [
        "text-generation of user alice: a prompt\0",
        "text-generation-for-alice@example.org\0",
        "text-generation" + "x" * 100,
        "text-generation\n{}",
        b"text-generation\xff\xfe",
        "another-program-altogether",
        "",
    ],
)
def test_a_title_that_a_process_gave_itself_is_not_taken(proc, title) -> None:
    process(proc, 7, "text-generation", "", title)
    assert name(proc).process == "text-generation"


@pytest.mark.parametrize(
    ("comm", "expected"),
    [
        ("a) R (b", "a) R (b"),
        ("a\nb\tc", "a?b?c"),
        (b"caf\xe9", "caf�"),
        ('"}\\', '"}\\'),
        ("", ""),
        ("VLLM::Worker", "VLLM::Worker"),
    ],
)
def test_odd_names_do_not_confuse_it(proc, comm, expected) -> None:
    process(proc, 7, comm, "0::/system.slice/x.service\n")
    assert name(proc) == ProcessUse(7, expected, "x.service")


def test_a_zombie_still_has_its_name_and_its_unit(proc) -> None:
    process(proc, 7, "ollama", "0::/system.slice/ollama.service (deleted)\n", state="Z")
    assert name(proc) == ProcessUse(7, "ollama", "ollama.service")


def test_a_process_that_is_gone_or_hidden_keeps_what_the_backend_said(proc) -> None:
    assert name(proc, process="ollama") == ProcessUse(7, "ollama")
    (proc / "7").mkdir()
    (proc / "7" / "stat").write_text("")
    assert name(proc, process="ollama") == ProcessUse(7, "ollama")
    (proc / "7" / "stat").write_text("7 (cut) S 0 0")
    assert name(proc) == ProcessUse(7)


def test_what_the_backend_says_counts_more(proc) -> None:
    process(proc, 7, "python3", "0::/system.slice/x.service\n")
    assert name(proc, process="vllm", unit="y.service") == ProcessUse(7, "vllm", "y.service")


def test_the_remainder_has_no_pid_and_gets_no_name(proc) -> None:
    process(proc, 0, "nobody")
    rest = ProcessUse(None, "other", memory_used_bytes=5)
    assert attributor(proc).name([rest]) == [rest]


def test_a_pid_that_was_used_again_is_another_process(proc) -> None:
    one = attributor(proc)
    process(proc, 7, "old", "0::/system.slice/old.service\n", start=5)
    assert one.name([ProcessUse(7)])[0].process == "old"
    process(proc, 7, "new", "0::/system.slice/new.service\n", start=9)
    assert one.name([ProcessUse(7)])[0] == ProcessUse(7, "new", "new.service")
    (proc / "7" / "stat").unlink()
    assert one.name([ProcessUse(7)])[0] == ProcessUse(7)


def test_a_pid_that_is_used_again_while_it_is_looked_at_gets_no_name(proc, monkeypatch) -> None:
    process(proc, 7, "old", "0::/system.slice/old.service\n", start=5)
    read = Path.read_bytes

    def then_it_ends(path: Path) -> bytes:
        content = read(path)
        if path.name == "cgroup":
            process(proc, 7, "new", "0::/system.slice/new.service\n", start=9)
        return content

    monkeypatch.setattr(Path, "read_bytes", then_it_ends)
    assert name(proc) == ProcessUse(7)


@pytest.mark.parametrize("ours", ["pid:[4026532456]", None])
def test_in_another_namespace_only_what_holds_a_card_is_named(tmp_path, ours) -> None:
    # There a pid of the driver may be the number of another process of this container.
    if ours is not None:
        namespace(tmp_path, ours)
    directory = process(tmp_path, 7, "innocent", "0::/system.slice/x.service\n")
    (directory / "fd").mkdir()
    (directory / "fd" / "3").symlink_to("/dev/null")
    assert name(tmp_path) == ProcessUse(7)
    (directory / "fd" / "4").symlink_to("/dev/nvidia0")
    assert name(tmp_path) == ProcessUse(7, "innocent", "x.service")


def test_whether_this_is_the_first_namespace_is_asked_of_proc(proc, tmp_path) -> None:
    assert in_first_namespace(proc)
    assert not in_first_namespace(tmp_path / "nothing")
    if str(Path("/proc/self/ns/pid").readlink()) == FIRST:
        assert in_first_namespace()


def test_where_only_files_of_the_host_are_lent_the_processes_are_the_own_ones(
    proc, tmp_path
) -> None:
    assert processes_root(proc) == proc
    assert processes_root(tmp_path / "lent") == Path("/proc")


def test_a_read_that_hangs_costs_names_and_nobody_waits_for_it(proc) -> None:
    clock = FakeClock()
    process(proc, 7, "text-generation", "0::/system.slice/tgi.service\n")
    process(proc, 8, "ollama")
    (proc / "7" / "cmdline").unlink()
    # It opens when somebody writes: the way a lock inside the kernel holds a reader up.
    os.mkfifo(proc / "7" / "cmdline")
    one = Attributor(proc, clock, patience=0.3)
    both = [ProcessUse(7), ProcessUse(8)]
    found = one.name(both)
    # What is told before it hangs is right, also of the one that hangs.
    assert found[0] == ProcessUse(7, "text-generation", "tgi.service")
    assert found[1] == ProcessUse(8, "ollama")
    assert one.name(both) == both
    clock.now += 10
    # Another reader; that process is not asked for its arguments again.
    again = Attributor.name(one, both)
    assert [use.process for use in again] == ["text-generation", "ollama"]
    (proc / "7" / "cmdline").open("w").close()


def test_a_bug_costs_names_and_no_reader(proc, monkeypatch, caplog) -> None:
    process(proc, 7, "ollama")
    one = attributor(proc)
    with monkeypatch.context() as patched:
        patched.setattr(one, "_facts", lambda pid: 1 / 0)
        assert one.name([ProcessUse(7)]) == [ProcessUse(7)]
    assert "cannot be named" in caplog.text
    assert one.name([ProcessUse(7)]) == [ProcessUse(7, "ollama")]


def test_readers_that_hang_are_few(proc) -> None:
    clock = FakeClock()
    for pid in range(10, 16):
        process(proc, pid, "text-generation")
        (proc / str(pid) / "cmdline").unlink()
        os.mkfifo(proc / str(pid) / "cmdline")
    one = Attributor(proc, clock, patience=0.05)
    before = threading.active_count()
    for pid in range(10, 16):
        one.name([ProcessUse(pid)])
        clock.now += 10
    assert threading.active_count() - before <= 4
    for pid in range(10, 14):
        (proc / str(pid) / "cmdline").open("w").close()


def test_what_no_gpu_uses_any_more_is_forgotten(proc) -> None:
    clock = FakeClock()
    one = Attributor(proc, clock, patience=30)
    for pid in range(10, 20):
        process(proc, pid, "short")
        one.name([ProcessUse(pid)])
        clock.now += 100
    assert len(one._known) <= 4


def options(**more) -> WorkerOptions:
    return WorkerOptions("nvml", BackendOptions(), Schedule(), **more)


@pytest.mark.parametrize("backend", ["simulated", "replay"])
def test_pids_of_another_machine_are_not_looked_up_here(backend) -> None:
    ours = ProcessUse(os.getpid(), "made up")
    name_processes = worker._namer(replace(options(), backend=backend), None, SystemClock())
    assert name_processes([ours]) == [ours]


def test_what_a_worker_is_told_reaches_it(proc) -> None:
    told = WorkerOptions.from_json(options(procfs=str(proc), container_socket="/s").to_json())
    assert (told.procfs, told.container_socket) == (str(proc), "/s")
    process(proc, 7, "ollama", "0::/system.slice/ollama.service\n")
    name_processes = worker._namer(replace(told, container_socket=""), None, SystemClock())
    poll(lambda: name_processes([ProcessUse(7)]) == [ProcessUse(7, "ollama", "ollama.service")])


def test_a_worker_without_a_socket_carries_no_http_client() -> None:
    script = "import exporter.worker, sys; print('http.client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.skipif(not in_first_namespace(), reason="pids of this container may be others'")
def test_the_whole_exporter_names_a_real_process(tmp_path, monkeypatch) -> None:
    driver = Driver(tmp_path / "driver", gpus=1)
    driver.set_processes(0, [DriverProcess(os.getpid(), memory_bytes=5)])
    for name_, value in driver.env().items():
        monkeypatch.setenv(name_, value)
    service = Service(Config(), ServiceOptions("nvml", sample_interval=0.2))
    service.start()
    try:
        assert service.wait_for_first_cycle(30)
        (use,) = service.store.snapshot().gpus[0].processes
    finally:
        service.stop()
    assert use.pid == os.getpid()
    assert Path("/proc/self/comm").read_text().strip() in use.process


def test_beyond_the_limit_the_sum_stays_right() -> None:
    uses = [ProcessUse(pid, memory_used_bytes=pid) for pid in range(1, 11)]
    kept = cap([*uses, ProcessUse(99)], 3)
    assert [one.pid for one in kept] == [10, 9, 8, None]
    assert sum(one.memory_used_bytes for one in kept) == sum(range(11))
    assert cap(uses, 10) == sorted(uses, key=lambda one: -one.memory_used_bytes)
    assert cap([ProcessUse(1), ProcessUse(2)], 1)[-1].memory_used_bytes is None
