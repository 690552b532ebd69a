from __future__ import annotations

import threading
from pathlib import Path

import pytest

from exporter.errors import StorageError
from exporter.frames import HeartbeatFrame
from exporter.inventory import FILE_NAME, Inventory, reset
from tests.exporter.fakes import Bench, info


def test_what_was_seen_is_expected_after_a_restart(tmp_path) -> None:
    Inventory("auto", tmp_path).saw([info(0), info(1)])
    again = Inventory("auto", tmp_path)
    assert again.expected_count() == 2
    (gone,) = again.missing(["GPU-0"])
    assert (gone.uuid, gone.index, gone.name) == ("GPU-1", 1, "NVIDIA A100-SXM4-40GB")


def test_in_memory_it_begins_empty() -> None:
    assert Inventory("auto", None).expected_count() is None


def test_a_count_limits_what_is_missing() -> None:
    inventory = Inventory(2, None)
    inventory.saw([info(0), info(1), info(2)])
    assert inventory.expected_count() == 2
    assert [gone.uuid for gone in inventory.missing(["GPU-0"])] == ["GPU-1"]
    assert inventory.missing(["GPU-0", "GPU-2"]) == ()


def test_listed_uuids_are_expected_though_never_seen() -> None:
    inventory = Inventory(("GPU-0", "GPU-9"), None)
    (gone,) = inventory.missing(["GPU-0"])
    assert (gone.uuid, gone.index) == ("GPU-9", None)


def test_reset_is_noticed_by_a_running_exporter(tmp_path) -> None:
    inventory = Inventory("auto", tmp_path)
    inventory.saw([info(0), info(1)])
    assert reset(tmp_path)
    inventory.saw([info(0)])
    assert inventory.missing(["GPU-0"]) == ()
    assert Inventory("auto", tmp_path).expected_count() == 1
    assert reset(tmp_path)
    assert not reset(tmp_path)


def test_a_gpu_that_is_down_keeps_what_was_known_of_it() -> None:
    inventory = Inventory("auto", None)
    inventory.saw([info(0)])
    blank = info(3, uuid="GPU-0", name="", memory_total_bytes=None)
    completed = inventory.complete(blank)
    assert completed.name == "NVIDIA A100-SXM4-40GB"
    assert completed.memory_total_bytes == info(0).memory_total_bytes
    assert completed.index == 3


def test_a_damaged_or_unwritable_state_says_what_to_do(tmp_path) -> None:
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(StorageError, match="inventory reset"):
        Inventory("auto", tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match=r"--storage\.path|cannot read"):
        Inventory("auto", file)


def test_a_disk_that_does_not_answer_costs_no_page_and_is_counted(
    tmp_path, monkeypatch, eventually
) -> None:
    answers = threading.Event()
    bench = Bench(inventory=Inventory("auto", tmp_path), gpus=2)
    exists = Path.exists

    def slow(path: Path) -> bool:
        assert answers.wait(30)
        return exists(path)

    def errors() -> int:
        bench.store.apply(HeartbeatFrame(bench.clock.monotonic()))
        bench.sample()
        return bench.store.snapshot().errors.get(("inventory", "storage"), 0)

    monkeypatch.setattr(Path, "exists", slow)
    monkeypatch.setattr("exporter.inventory._PATIENCE_SECONDS", 0.01)
    bench.store._inventory = Inventory("auto", tmp_path)
    try:
        assert [errors(), errors()] == [1, 2]
        bench.enumerate(info(0), info(1))
        assert bench.store.snapshot().expected == 2
    finally:
        answers.set()
    monkeypatch.undo()
    eventually(lambda: errors() == errors())


def test_a_disk_that_refuses_is_an_error_and_no_reset(tmp_path, monkeypatch) -> None:
    inventory = Inventory("auto", tmp_path)
    inventory.saw([info(0)])

    def stale() -> bool:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(inventory._is_there, "_ask", stale)
    with pytest.raises(StorageError, match="Stale file handle"):
        inventory.was_reset()
    inventory.saw([info(0), info(1)])
    assert len(inventory.missing(())) == 2
