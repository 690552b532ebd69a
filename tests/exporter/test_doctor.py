from __future__ import annotations

from pathlib import Path

import pytest

from exporter import doctor
from exporter.environment import Environment
from exporter.frames import BackendFrame, FaultFrame
from exporter.readings import BackendReason, FaultReason
from tests.exporter.fakes import Bench


@pytest.fixture(autouse=True)
def outside_kubernetes(monkeypatch) -> None:
    monkeypatch.delenv("KUBERNETES_PORT", raising=False)


def write(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def machine(root: Path, *, driver: bool = True, nodes: bool = True) -> Environment:
    write(root, "sys/bus/pci/devices/0000:17:00.0/vendor", "0x10de\n")
    write(root, "sys/bus/pci/devices/0000:17:00.0/class", "0x030200\n")
    write(root, "sys/bus/pci/devices/0000:00:1f.0/vendor", "0x8086\n")
    if driver:
        write(root, "proc/driver/nvidia/version", "NVRM version: 580.95\nGCC\n")
        write(root, "proc/driver/nvidia/gpus/0000:17:00.0/information")
    if nodes:
        write(root, "dev/nvidiactl")
        write(root, "dev/nvidia0")
    return Environment(root)


def look(environment: Environment, *, library: bool = True, allowed: bool = True):
    def load(name: str) -> object:
        if not library:
            raise OSError(f"{name}: no such file")
        return object()

    return list(doctor.findings(environment, load, lambda node: allowed))


def problems(found) -> list[str]:
    assert all(finding.remedy for finding in found if not finding.ok)
    return [finding.text for finding in found if not finding.ok]


def test_a_machine_in_order_has_no_problem(tmp_path) -> None:
    found = look(machine(tmp_path))
    text, code = doctor.render(found)
    assert (problems(found), code) == ([], 0)
    assert "0000:17:00.0" in text
    assert all(line.startswith("OK") for line in text.splitlines())


def test_each_cause_is_named(tmp_path) -> None:
    empty = problems(look(Environment(tmp_path / "nothing"), library=False))
    assert any("PCI" in text for text in empty)
    assert any("kernel driver" in text for text in empty)
    assert any("libnvidia-ml.so.1" in text for text in empty)
    assert any("device nodes" in text for text in empty)
    locked = problems(look(machine(tmp_path / "locked"), allowed=False))
    assert locked == [
        f"{tmp_path}/locked/dev/nvidiactl cannot be opened by this user",
        f"{tmp_path}/locked/dev/nvidia0 cannot be opened by this user",
    ]


def test_in_a_container_the_remedy_is_the_containers(tmp_path) -> None:
    environment = machine(tmp_path, nodes=False)
    write(tmp_path, ".dockerenv")
    text, code = doctor.render(look(environment, library=False))
    assert code == 1
    assert "--gpus all" in text


def test_a_jetson_is_recognised(tmp_path) -> None:
    write(tmp_path, "etc/nv_tegra_release", "# R36")
    found = look(Environment(tmp_path))
    assert any("Tegra" in one.text for one in found)
    # What other machines need and a Jetson has not is no problem there.
    assert problems(found) == []


def test_what_the_backend_answered() -> None:
    bench = Bench(gpus=2)
    bench.sample("GPU-0")
    bench.store.apply(FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST, "fell off"))
    text, code = doctor.render(list(doctor.outcome(bench.store.snapshot())))
    assert code == 1
    assert "2 GPUs, driver 580.1" in text
    assert "PROBLEM  GPU GPU-1 NVIDIA A100-SXM4-40GB: lost: fell off" in text
    bench.store.apply(
        BackendFrame("nvml", up=False, reason=BackendReason.VERSION_MISMATCH, message="reboot")
    )
    (finding,) = doctor.outcome(bench.store.snapshot())
    assert (finding.ok, finding.remedy) == (False, "reboot")
    (silent,) = doctor.outcome(Bench(gpus=0).store.snapshot())
    assert "in time" in silent.text


def noted(found) -> list[str]:
    found = list(found)
    # Nothing of it keeps a card from being read.
    assert all(finding.ok for finding in found)
    return [finding.text for finding in found if finding.remedy]


def host_proc(root: Path, namespace: str = "pid:[4026531836]", *, shown: bool = True) -> Path:
    (root / "1" / "ns").mkdir(parents=True)
    (root / "1" / "ns" / "pid").symlink_to(namespace)
    (root / "self").symlink_to("1")
    if shown:
        write(root, "1/stat")
    return root


def test_where_all_can_be_told_nothing_is_noted(tmp_path) -> None:
    write(tmp_path, "kmsg")
    found = list(doctor.notes(host_proc(tmp_path / "proc"), tmp_path / "kmsg", None))
    assert noted(found) == []
    assert "kmsg can be read" in found[0].text
    assert list(doctor.notes(tmp_path / "proc", None, None)) == []


def test_what_cannot_be_told_is_a_note_and_no_problem(tmp_path) -> None:
    proc = host_proc(tmp_path / "container", "pid:[4026532456]")
    found = list(doctor.notes(proc, tmp_path / "no-kmsg", tmp_path / "no-socket"))
    log, pids, names = noted(found)
    assert "no-kmsg cannot be read (No such file or directory)" in log
    assert "hold a card open" in pids
    assert "no-socket gives no answer" in names
    text, code = doctor.render(found)
    assert code == 0
    assert all(line.startswith("NOTE ") for line in text.splitlines())
    (hidden,) = noted(doctor.notes(host_proc(tmp_path / "hidden", shown=False), None, None))
    assert "hides the processes" in hidden
