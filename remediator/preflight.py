"""What a person would want to hear at once when the remediator starts, but no reason not to start."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from remediator import runner
from remediator.errors import ControlError, ManagerError, NoEvidence, OutcomeUnknown
from remediator.helper.client import Helper
from remediator.managers.base import Concerned
from remediator.playbooks import Playbooks
from remediator.world import World

_LOAD = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1')"
_STATUS = Path("/proc/self/status")
_CAPABILITIES = re.compile(r"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)
_CAP_SYS_ADMIN = 21


def concerns(world: World, playbooks: Playbooks) -> Iterator[str]:
    """One sentence for each thing that is not as it should be; takes up to a few seconds."""
    try:
        world.gpus.all()
    except NoEvidence as error:
        yield (
            f"{error}; until it does, no GPU alert is decided: start gpu-exporter, or correct "
            "exporter.url"
        )
    yield from helper_concerns(world, playbooks)
    yield from manager_concerns(world)
    if world.config.gpus.control == "nvml":
        yield from _nvml(world, playbooks)
    if "gpu_reset" in world.config.allow:
        yield from _reset(world)


def _reset(world: World) -> Iterator[str]:
    if world.config.exporter.release_token_file is None:
        yield (
            "allow has gpu_reset, but exporter.release_token_file is not set: every reset will be "
            "refused, because the exporter would hold the card open"
        )
    if world.config.gpus.control in ("jetson", "none"):
        yield f"allow has gpu_reset, but gpus.control {world.config.gpus.control} can reset no card"
    elif world.config.gpus.control not in ("simulated", "helper") and os.geteuid() != 0:
        yield (
            "allow has gpu_reset, but this does not run as root: every reset will be refused; let "
            "the helper do them (gpus.control helper)"
        )


def _nvml(world: World, playbooks: Playbooks) -> Iterator[str]:
    if not _driver_library_loads(world.config.gpus.timeout):
        yield (
            "gpus.control is nvml, but the driver library libnvidia-ml.so.1 cannot be loaded: no "
            "power limit can be set; install the NVIDIA driver, or set gpus.control"
        )
    if _acts(world, playbooks) and not _privileged():
        yield (
            "gpus.control is nvml, but this runs neither as root nor with CAP_SYS_ADMIN: the driver "
            "will refuse to set a power limit; let the helper do it (gpus.control helper)"
        )


def helper_concerns(world: World, playbooks: Playbooks) -> Iterator[str]:
    """What the helper would not do; nothing where it is not needed."""
    gpus = world.config.gpus
    if gpus.control != "helper" and not (gpus.control == "jetson" and gpus.helper_socket):
        return
    needed = set()
    if _acts(world, playbooks):
        needed.add("jetson" if gpus.control == "jetson" else "power_limit")
    if "gpu_reset" in world.config.allow and gpus.control == "helper":
        needed.add("reset")
    if not needed:
        return
    try:
        allowed = Helper(gpus.helper_socket, gpus.timeout).about().get("allow", ())
    except ControlError as error:
        yield f"{error}; until it does, no card is written to"
        return
    for permission in sorted(needed.difference(allowed)):
        yield f"the helper will refuse: allow in its helper.yml lacks {permission}"


def manager_concerns(world: World) -> Iterator[str]:
    """What managers that can tell it beforehand would refuse."""
    for name, service in sorted(world.services.items()):
        if isinstance(service.manager, Concerned):
            for sentence in service.manager.concerns():
                yield f"service {name}: {sentence}"


def _acts(world: World, playbooks: Playbooks) -> bool:
    """Whether anything is ever done."""
    modes = {playbook.mode or world.config.mode for playbook in playbooks.by_name.values()}
    return bool(modes & {"approve", "auto"})


def _privileged() -> bool:
    """Whether the driver may take a power limit from us."""
    if os.geteuid() == 0:
        return True
    found = _CAPABILITIES.search(_STATUS.read_text(encoding="ascii", errors="replace"))
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_ADMIN & 1)


def _driver_library_loads(timeout: float) -> bool:
    """Tried in a process of its own, as each call to the driver is: here it would stay loaded."""
    try:
        return runner.run([sys.executable, "-P", "-c", _LOAD], timeout=timeout).returncode == 0
    except (ManagerError, OutcomeUnknown):
        return False
