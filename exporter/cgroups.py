"""Where a process belongs, by its `/proc/<pid>/cgroup`: systemd unit, container, Kubernetes pod.

The forms are those that kubelet, containerd, CRI-O, Docker and Podman make, with either cgroup
driver, on either version of cgroups; tests/exporter/test_cgroups.py quotes each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ID = "[0-9a-f]{64}"
# Bare (cgroupfs), `docker-ID.scope` and `crio-ID` (systemd, CRI-O on cgroupfs), and
# `SLICE:cri-containerd:ID` (a systemd path given to a cgroupfs driver).
_CONTAINER = re.compile(rf"(?:[a-z0-9]+-)*({_ID})(?:\.scope)?|[^:]+:[^:]+:({_ID})")
# What watches over a container is not in it.
_MONITOR = re.compile(rf"[a-z]+-conmon-{_ID}(?:\.scope)?")
# A pod of the API server has a uuid, a static one the hash of its file.
_POD = re.compile(
    r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=\.slice|$)"
)
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process belongs; empty is "in none, or not to be seen from here".

    Attributes:
        unit: the innermost systemd unit of the host; never one of inside a container.
        container_id: the innermost container, 64 hexadecimal digits.
        pod_uid: of the pod, as the API server writes it.
    """

    unit: str = ""
    container_id: str = ""
    pod_uid: str = ""


def place(text: str) -> Place:
    """Read the content of a `/proc/<pid>/cgroup`."""
    places = [_of_path(path) for path in _paths(text)]
    named = next((one for one in places if one.container_id), None)
    return named or next((one for one in places if one.unit or one.pod_uid), Place())


def _paths(text: str) -> Iterator[str]:
    """Yield the paths, systemd's own first: the other hierarchies need not know of units."""
    by_controllers: dict[str, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        by_controllers.setdefault(controllers or number, path.removesuffix(_DELETED))
    first = [by_controllers.pop(name) for name in ("name=systemd", "0") if name in by_controllers]
    yield from (*first, *by_controllers.values())


def _of_path(path: str) -> Place:
    parts = path.split("/")
    found = [(depth, match) for depth, part in enumerate(parts) if (match := _container(part))]
    if not found:
        return Place(unit=_unit(parts), pod_uid=_pod(parts))
    depth, match = found[-1]
    # Below the outermost container the names are that container's own.
    outside = parts[: found[0][0] + 1]
    return Place(_unit(outside), match[1] or match[2], _pod(parts[: depth + 1]))


def _container(part: str) -> re.Match[str] | None:
    return None if _MONITOR.fullmatch(part) else _CONTAINER.fullmatch(part)


def _unit(parts: list[str]) -> str:
    units = [
        part
        for part in parts
        if part.endswith((".service", ".scope")) and not part.startswith("user@")
    ]
    return units[-1] if units else ""


def _pod(parts: list[str]) -> str:
    uids = [match[1] for part in parts for match in _POD.finditer(part.partition(":")[0])]
    return uids[-1].replace("_", "-") if uids else ""
