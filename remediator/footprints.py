"""Footprints: what a service used of each card once its models were loaded, and what it uses now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from remediator.managers import ProcessIdentity
from remediator.readings import GpuReading
from remediator.store import Transaction
from remediator.world import Service, World

Measure = Literal["processes", "card"]


@dataclass(frozen=True)
class Use:
    """Bytes of a card; `by` the driver's figure for its processes, or all that the card has in use."""

    used_bytes: int
    by: Measure


@dataclass(frozen=True)
class Footprint:
    """What one process used with these models, by card, once that had come to rest.

    `out_of_memory` is how often the service had run out of memory by then.
    """

    process: ProcessIdentity
    models: tuple[str, ...]
    used: Mapping[str, Use]
    out_of_memory: int

    def is_of(self, process: ProcessIdentity, models: tuple[str, ...]) -> bool:
        """Whether it was taken of this process with just these models."""
        return self.process.same(process) and self.models == models


def use_of(
    world: World, service: Service, process: ProcessIdentity, reading: GpuReading
) -> Use | None:
    """What the service uses of a card now; None where nobody can tell it from others' memory."""
    if reading.processes is not None:
        pids, unit = _family(process.pid), service.manager.unit
        # In a container other pids are seen than on the host; the unit's name is the same.
        mine = [
            p
            for p in reading.processes
            if p.pid in pids or unit in (p.unit, p.container) or p.is_of(process.name)
        ]
        sizes = [p.memory_used_bytes for p in mine]
        if sizes and None not in sizes:
            return Use(sum(size or 0 for size in sizes), "processes")
        if any(p.memory_used_bytes for p in reading.processes if p not in mine):
            # All that the card has in use is not the service's alone.
            return None
    alone = len(world.services_on(reading.uuid)) == 1
    if alone and reading.memory_used_bytes is not None:
        return Use(int(reading.memory_used_bytes), "card")
    return None


def load(tx: Transaction, name: str) -> Footprint | None:
    """The footprint of service `name`; None where none was taken yet."""
    text = tx.get_meta(_key(name))
    if text is None:
        return None
    raw = json.loads(text)
    used = tx.inventory.service(name).footprint
    return Footprint(
        ProcessIdentity(int(raw["pid"]), float(raw["started_at"]), str(raw.get("name", ""))),
        tuple(raw["models"]),
        {uuid: Use(used[uuid], by) for uuid, by in raw["by"].items() if uuid in used},
        int(raw["out_of_memory"]),
    )


def after_restart(tx: Transaction, name: str, models: tuple[str, ...]) -> Mapping[str, Use]:
    """What the service last came to, by card, when it was restarted by us and had these models.

    Empty where that was never seen. It stays true of the processes that come after.
    """
    text = tx.get_meta(_restart_key(name))
    raw: dict[str, Any] = json.loads(text) if text else {}
    if raw.get("models") != list(models):
        return {}
    return {uuid: Use(int(used), by) for uuid, (used, by) in raw["used"].items()}


def came_of_restart(tx: Transaction, name: str, process: ProcessIdentity) -> bool:
    """Whether the process came of the remediator's last restart of the service."""
    pid, _, rest = (tx.get_meta(f"restarted:{name}") or "").partition(" ")
    started_at, _, called = rest.partition(" ")
    return bool(pid) and ProcessIdentity(int(pid), float(started_at), called).same(process)


def keep(tx: Transaction, name: str, footprint: Footprint) -> None:
    """Keep the footprint of service `name` in place of an earlier one."""
    if came_of_restart(tx, name, footprint.process):
        used = {uuid: (use.used_bytes, use.by) for uuid, use in footprint.used.items()}
        known = {"models": footprint.models, "used": used}
        tx.set_meta(_restart_key(name), json.dumps(known))
    tx.inventory.remember_footprint(name, {u: use.used_bytes for u, use in footprint.used.items()})
    raw = {
        **footprint.process.to_json(),
        "models": footprint.models,
        "by": {uuid: use.by for uuid, use in footprint.used.items()},
        "out_of_memory": footprint.out_of_memory,
    }
    tx.set_meta(_key(name), json.dumps(raw))


def _key(name: str) -> str:
    return f"footprint:{name}"


def _restart_key(name: str) -> str:
    return f"footprint_after_restart:{name}"


def _family(pid: int) -> frozenset[int]:
    """A process and everything that it started: a server may run its models in children."""
    if pid == 0:
        return frozenset()
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        children = []
    return frozenset((pid, *(child.pid for child in children)))
