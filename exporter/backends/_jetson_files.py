"""Where a Jetson keeps what: found by what files say of themselves, never by a number."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from exporter.backends._sysfs import Tree

_DEVFREQ = "sys/class/devfreq"
_GPU_NODES = {"gm20b", "gp10b", "gv11b", "ga10b", "gb10b", "gpu"}
_THOR_NODE = "gpu-gpc-0"
_LOADS = (
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
    "sys/devices/platform/bus@0/17000000.gpu/load",
)
# The rail of the GPU, alone where there is such a rail, or else with what shares it.
_GPU_RAILS = ("VDD_GPU", "VDD_SYS_GPU", "GPU", "VDD_GPU_SOC", "VDD_CPU_GPU_CV")
_RELEASE = re.compile(r"R(\d+)\D+REVISION: ([\d.]+)")
_NAMESPACE = uuid.UUID("b1f0a8d2-6c1e-5f57-9c55-0e6a3c1d7a42")


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one GPU; None or empty is what this board does not have.

    Attributes:
        devfreq: folder with the clock.
        load: permille.
        zones: folders of the thermal zones that tell its temperature, the best first.
        rail: prefix pair (voltage in mV, current in mA) of its power rail.
        fan: duty, 0 to 255.
    """

    devfreq: str | None
    load: str | None
    zones: tuple[str, ...]
    rail: tuple[str, str] | None
    fan: str | None


def find(tree: Tree) -> Files:
    """Look for the files of the GPU."""
    devfreq = next(_gpu_nodes(tree), None)
    loads = _LOADS if devfreq is None else (f"{devfreq}/device/load", *_LOADS)
    return Files(
        devfreq=devfreq,
        load=next((path for path in loads if tree.exists(path)), None),
        zones=(*_zones(tree, "gpu-therm"), *_zones(tree, "tj-therm")),
        rail=_rail(tree),
        fan=_fan(tree),
    )


def is_thor(found: Files) -> bool:
    """Tell a Thor, by the name that only its kernel gives the GPU."""
    return found.devfreq is not None and found.devfreq.endswith(f"/{_THOR_NODE}")


def pseudo_uuid(tree: Tree) -> str:
    """Return an identity that stays over restarts, upgrades and kernel names of the GPU.

    A serial number is not told to the world, only what follows from it.
    """
    sources = (
        "proc/device-tree/serial-number",
        "sys/module/tegra_fuse/parameters/tegra_chip_uid",
        "etc/machine-id",
        "proc/device-tree/model",
    )
    said = next((text for path in sources if (text := tree.text(path)) is not None), "")
    return f"GPU-{uuid.uuid5(_NAMESPACE, said)}"


def release(tree: Tree) -> str:
    """Return the version of Jetson Linux, such as 36.4.3; empty when it is not told."""
    found = _RELEASE.search(tree.text("etc/nv_tegra_release") or "")
    return f"{found[1]}.{found[2]}" if found else ""


def limits(tree: Tree, files: Files) -> dict[str, float]:
    """Return the trip points of the GPU's own zone in degrees Celsius."""
    if not files.zones:
        return {}
    found: dict[str, list[float]] = {"slowdown": [], "shutdown": []}
    names = {"passive": "slowdown", "critical": "shutdown"}
    for path in tree.names(files.zones[0], "trip_point_*_type"):
        name = names.get(tree.text(path) or "")
        millidegrees = tree.number(path.removesuffix("type") + "temp")
        if name is not None and millidegrees is not None and millidegrees > 0:
            found[name].append(millidegrees / 1000)
    return {name: min(values) for name, values in found.items() if values}


def _gpu_nodes(tree: Tree) -> Iterator[str]:
    for path in tree.names(_DEVFREQ):
        name = path.rpartition("/")[2]
        node = tree.text(f"{path}/device/of_node/name") or name.rpartition(".")[2]
        if name == _THOR_NODE or node in _GPU_NODES:
            yield path


def _zones(tree: Tree, kind: str) -> Iterator[str]:
    for path in tree.names("sys/class/thermal", "thermal_zone*"):
        said = (tree.text(f"{path}/type") or "").lower().replace("_", "-")
        if said.startswith(kind):
            yield path


def _rail(tree: Tree) -> tuple[str, str] | None:
    found = {}
    for monitor in tree.names("sys/class/hwmon", "hwmon*"):
        if tree.text(f"{monitor}/name") != "ina3221":
            continue
        for label in tree.names(monitor, "in[1-3]_label"):
            channel = label.rpartition("/in")[2].removesuffix("_label")
            files = (f"{monitor}/in{channel}_input", f"{monitor}/curr{channel}_input")
            found[tree.text(label) or ""] = files
    return next((found[name] for name in _GPU_RAILS if name in found), None)


def _fan(tree: Tree) -> str | None:
    for monitor in tree.names("sys/class/hwmon", "hwmon*"):
        if tree.text(f"{monitor}/name") == "pwmfan":
            return f"{monitor}/pwm1"
    return None
