"""A disk that does not answer costs what is kept over a restart, and no page."""

from __future__ import annotations

import json
import os
import threading

import pytest

from exporter import state_file
from exporter.errors import StorageError
from exporter.frames import HeartbeatFrame
from exporter.inventory import Inventory
from exporter.page import Page
from exporter.xid_ledger import FILE_NAME, XidLedger
from tests.exporter.fakes import Bench, info


@pytest.fixture
def disk(monkeypatch):
    """Set while the disk answers."""
    answers = threading.Event()
    answers.set()
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        assert answers.wait(30)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield answers
    answers.set()


def test_what_is_late_is_an_error_and_is_written_all_the_same(disk, tmp_path, eventually) -> None:
    path = tmp_path / "state.json"
    state_file.write(path, {"n": 1})
    disk.clear()
    with pytest.raises(StorageError, match="not written yet"):
        state_file.write(path, {"n": 2}, 0.05)
    with pytest.raises(StorageError, match="does not answer"):
        state_file.write(path, {"n": 3}, 0.05)
    assert json.loads(path.read_text()) == {"n": 1}
    disk.set()
    eventually(lambda: json.loads(path.read_text()) == {"n": 2})
    eventually(lambda: path not in state_file._going_on)
    state_file.write(path, {"n": 4})
    assert json.loads(path.read_text()) == {"n": 4}


def test_the_page_is_served_while_the_disk_hangs(disk, tmp_path, eventually) -> None:
    bench = Bench(ledger=XidLedger(tmp_path, (79,)))
    bench.sample()
    disk.clear()
    bench.xid("GPU-0", 79)
    bench.store.apply(HeartbeatFrame(bench.clock.monotonic()))
    bench.store.apply(HeartbeatFrame(bench.clock.monotonic()))
    page = Page(bench.store).render()[0].decode()
    (counted,) = (line for line in page.splitlines() if line.startswith("gpu_xid_errors_total{"))
    assert counted.endswith(" 1.0")
    assert bench.store.snapshot().errors["xids", "storage"] == 2
    disk.set()
    eventually(lambda: not state_file._going_on)
    bench.store.apply(HeartbeatFrame(bench.clock.monotonic()))
    kept = json.loads((tmp_path / FILE_NAME).read_text())
    assert kept["xids"]["GPU-0"]["79"]["count"] == 1


def test_a_card_that_was_not_written_down_is_with_the_next_look(disk, tmp_path, eventually) -> None:
    inventory = Inventory("auto", tmp_path)
    disk.clear()
    with pytest.raises(StorageError):
        inventory.saw([info()])
    disk.set()
    eventually(lambda: not state_file._going_on)
    (tmp_path / "expected-gpus.json").write_text('{"gpus": []}')
    inventory.saw([info()])
    assert [one.uuid for one in Inventory("auto", tmp_path).missing(())] == ["GPU-0"]
