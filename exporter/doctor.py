"""`gpu-exporter doctor`: why is there no GPU here? It looks at files, and opens the library."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exporter.attribution import in_first_namespace
from exporter.environment import NVML_LIBRARY, Environment
from exporter.errors import EngineError
from exporter.kernel_log import unreadable
from exporter.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `gpu-exporter doctor`.

    Attributes:
        ok: false is a problem: no card can be read because of it.
        remedy: what to do; empty when all is well. What is well with a remedy is a note.
    """

    ok: bool
    text: str
    remedy: str = ""


def findings(
    environment: Environment,
    load_library: Callable[[str], object] = ctypes.CDLL,
    may_open: Callable[[Path], bool] | None = None,
) -> Iterator[Finding]:
    """Look at the machine, from the card upward to the library."""
    container = environment.in_container()
    where = "in a container" if container else "not in a container"
    yield Finding(ok=True, text=f"this process runs {where}")
    if environment.is_tegra():
        # Cards, nodes and NVML are not what its GPU is read by.
        yield Finding(ok=True, text="this is a Jetson (Tegra): its GPU is read from /sys")
        return
    yield _cards(environment)
    yield _driver(environment, container=container)
    yield from _nodes(environment, may_open or _may_open, container=container)
    yield _library(load_library, container=container)


def notes(proc: Path, kmsg: Path | None, container_socket: Path | None) -> Iterator[Finding]:
    """Say what could be told beside the readings, to this user, and is not."""
    if kmsg is not None:
        yield _kernel_log(kmsg)
    if not in_first_namespace(proc):
        yield Finding(
            ok=True,
            text="processes are named only where they are seen to hold a card open",
            remedy="in a container, let it see the host's pids (pid: host)",
        )
    elif not os.access(proc / "1" / "stat", os.R_OK):
        yield Finding(
            ok=True,
            text=f"{proc} hides the processes of others: they have a pid and no name",
            remedy="mount it without hidepid, or give its gid= to this user",
        )
    if container_socket is not None:
        yield _container_names(container_socket)


def outcome(snapshot: Snapshot) -> Iterator[Finding]:
    """Say what the backend itself answered."""
    backend = snapshot.backend
    if backend.up is None:
        yield Finding(
            ok=False,
            text=f"backend {backend.name} gave no answer in time",
            remedy="a driver call may hang: look at `dmesg` for Xid lines",
        )
        return
    if not backend.up:
        yield Finding(ok=False, text=f"backend {backend.name}: {backend.reason}",
                      remedy=backend.message)  # fmt: skip
        return
    count = snapshot.visible or 0
    driver = backend.driver_version or "of unknown version"
    yield Finding(
        ok=count > 0,
        text=f"backend {backend.name}: {count} GPUs, driver {driver}",
        remedy="" if count else "the driver runs without a GPU: look at `dmesg`",
    )
    for view in snapshot.gpus:
        name = f"GPU {view.info.uuid} {view.info.name}".rstrip()
        if view.up:
            yield Finding(ok=True, text=f"{name} answers")
        else:
            text = f"{name}: {view.fault or 'down'}"
            yield Finding(ok=False, text=text, remedy=view.fault_message or "see the lines above")


def render(found: list[Finding]) -> tuple[str, int]:
    """Return a line for each finding, and exit code 1 when there is a problem."""
    lines = []
    for finding in found:
        mark = "PROBLEM" if not finding.ok else "NOTE   " if finding.remedy else "OK     "
        remedy = f": {finding.remedy}" if finding.remedy else ""
        lines.append(f"{mark}  {finding.text}{remedy}")
    return "\n".join(lines), 0 if all(finding.ok for finding in found) else 1


def _cards(environment: Environment) -> Finding:
    cards = environment.pci_nvidia_devices()
    if cards:
        return Finding(ok=True, text=f"NVIDIA devices on the PCI bus: {', '.join(cards)}")
    return Finding(
        ok=False,
        text="no NVIDIA device on the PCI bus",
        remedy="check that the card is seated and powered, or passed to this virtual machine",
    )


def _driver(environment: Environment, *, container: bool) -> Finding:
    version = environment.kernel_driver()
    if version:
        return Finding(ok=True, text=f"kernel driver: {version}")
    remedy = "on the host: install the driver and run `modprobe nvidia`"
    return Finding(
        ok=False,
        text="no NVIDIA kernel driver is loaded",
        remedy=remedy if container else remedy.removeprefix("on the host: "),
    )


def _nodes(
    environment: Environment, may_open: Callable[[Path], bool], *, container: bool
) -> Iterator[Finding]:
    nodes = environment.device_nodes()
    if not nodes:
        yield Finding(
            ok=False,
            text="no /dev/nvidia* device nodes",
            remedy="start the container with the GPUs (--gpus all)"
            if container
            else "run `nvidia-modprobe -u -c=0`, or `nvidia-smi` once as root",
        )
    for node in nodes:
        allowed = may_open(node)
        yield Finding(
            ok=allowed,
            text=f"{node} {'can' if allowed else 'cannot'} be opened by this user",
            remedy="" if allowed else "add the user to the group that owns it, often `video`",
        )


def _library(load: Callable[[str], object], *, container: bool) -> Finding:
    try:
        load(NVML_LIBRARY)
    except OSError as error:
        return Finding(
            ok=False,
            text=f"{NVML_LIBRARY} cannot be loaded ({error})",
            remedy="install the NVIDIA container toolkit on the host and use --gpus all"
            if container
            else "install the NVIDIA driver's libraries, then run `ldconfig`",
        )
    return Finding(ok=True, text=f"{NVML_LIBRARY} loads")


def _kernel_log(path: Path) -> Finding:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        text, _, remedy = unreadable(path, error).partition("; ")
        return Finding(ok=True, text=text, remedy=remedy or "give --path.kmsg where it is")
    return Finding(ok=True, text=f"Xid errors and OOM kills: {path} can be read by this user")


def _container_names(path: Path) -> Finding:
    # Only here: an HTTP client is big.
    engine = importlib.import_module("exporter.container_engine")
    try:
        engine.name_of("0" * 64, path)
    except EngineError as error:
        return Finding(
            ok=True,
            text=f"containers have no names: {error}",
            remedy="let this user connect to the engine's socket, or leave out --container.socket",
        )
    return Finding(ok=True, text=f"names of containers: {path} answers")


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)
