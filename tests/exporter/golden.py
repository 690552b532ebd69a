"""The metrics page of a backend at a standstill: opened once, read once, rendered.

`python -m tests.exporter.golden` writes the page of every capture anew: read the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

from exporter.backends.base import Backend
from exporter.backends.replay import ReplayBackend
from exporter.capture import file as capture_file
from exporter.frames import BackendFrame, DevicesFrame, HealthFrame, ProcessesFrame, SampleFrame
from exporter.page import Page
from exporter.store import Store
from tests.exporter.fakes import Bench

CAPTURES = Path(__file__).parent / "captures"
# About the catalogue, the reading or this process, and not about the card.
_LEFT_OUT = re.compile(r"^(?:# |gpu_exporter_|process_|python_)")


def page_of(backend: Backend) -> str:
    """All that it tells of its GPUs, in the text format."""
    bench = Bench(gpus=0)
    _read(bench.store, backend, bench.clock.time(), bench.clock.monotonic())
    lines = Page(bench.store).render()[0].decode().splitlines(keepends=True)
    return "".join(line for line in lines if not _LEFT_OUT.match(line))


def captures() -> list[Path]:
    return sorted(CAPTURES.glob("*.jsonl"))


def replayed(path: Path) -> str:
    return page_of(ReplayBackend(capture_file.load(path)))


def _read(store: Store, backend: Backend, time: float, now: float) -> None:
    found = backend.open()
    store.apply(
        BackendFrame(
            backend.name,
            up=True,
            driver_version=found.driver_version,
            cuda_version=found.cuda_version,
        )
    )
    infos = tuple(device.info for device in found.devices)
    store.apply(DevicesFrame(infos, found.failed, 0.0, found.watched))
    for device in found.devices:
        uuid, read = device.info.uuid, device.sample()
        store.apply(SampleFrame(uuid, time, now, read.sample, 0.0, read.errors))
        uses = device.processes().processes
        if uses is None:
            store.apply(ProcessesFrame(uuid, now))
        else:
            store.apply(ProcessesFrame(uuid, now, tuple(uses), len(uses), 0.0))
        health = device.health()
        store.apply(HealthFrame(uuid, now, health.health, 0.0, health.errors))
    backend.close()


if __name__ == "__main__":
    for path in captures():
        path.with_suffix(".metrics").write_text(replayed(path))
