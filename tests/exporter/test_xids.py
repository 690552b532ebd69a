"""The table of Xids, and what is counted of them."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest

from exporter import xids
from exporter.errors import ConfigError, StorageError
from exporter.frames import HeartbeatFrame
from exporter.xid_ledger import FILE_NAME, XidCount, XidLedger
from exporter.xids import Remedy, Severity
from tests.exporter.fakes import Bench, info

ROW = {"xid": 1, "severity": "info", "action": "none"}


def codes(**wanted) -> set[int]:
    rows = xids.table().values()
    return {
        row.xid for row in rows if all(getattr(row, key) == value for key, value in wanted.items())
    }


def test_the_table_has_the_buckets_of_the_catalogue() -> None:
    counts = Counter(row.action for row in xids.table().values())
    assert counts[Remedy.RESTART_APP] == 48
    assert counts[Remedy.NONE] == 19
    assert codes(action=Remedy.RESET_GPU) == {
        46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158,
    }  # fmt: skip
    assert codes(action=Remedy.REBOOT_HOST) == {79}
    assert codes(action=Remedy.FOLLOW_RECOVERY_ACTION) == {154}


def test_what_is_critical_is_nothing_else_and_has_a_remedy() -> None:
    critical = set(xids.critical())
    assert critical == codes(severity=Severity.CRITICAL)
    assert critical.isdisjoint(codes(severity=Severity.WARNING) | codes(severity=Severity.INFO))
    assert {48, 79, 95, 119, 120} <= critical
    assert codes(action=Remedy.RESET_GPU) <= critical
    assert critical.isdisjoint(codes(action=Remedy.NONE) | codes(action=Remedy.RESTART_APP))
    # An application's own error, NVLink alone and secondary codes wake nobody.
    assert critical.isdisjoint({13, 31, 43, 45, 63, 74, 94, 154})
    assert all(xids.table()[xid].meaning for xid in critical)


def test_what_a_card_may_need_something_for_is_counted_from_zero() -> None:
    known = set(xids.counted_from_zero())
    assert known >= set(xids.critical())
    # NVLink errors and the recovery action; what DCGM watches of the memory; no application's own error.
    assert {31, 63, 74, 144, 154} <= known
    assert known.isdisjoint({13, 45, 68, 94})
    assert {row.xid for row in xids.table().values() if row.contested} <= known
    assert len(known) == 36


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ([ROW], ""),
        ([ROW, ROW], "twice"),
        ([ROW | {"severity": "dire"}], "dire"),
        ([ROW | {"action": "pray"}], "pray"),
        ([{"severity": "info", "action": "none"}], "xid"),
        ([1], "not understood"),
        ("[", "not understood"),
        ("", "not understood"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(text, says) -> None:
    if not isinstance(text, str):
        text = json.dumps({"xids": text})
    if not says:
        assert list(xids.parse(text)) == [1]
        return
    with pytest.raises(ConfigError, match=says):
        xids.parse(text)


def test_counts_survive_a_restart(tmp_path) -> None:
    ledger = XidLedger(tmp_path, (48, 79))
    ledger.watch("GPU-0")
    ledger.saw("GPU-0", 79, 5.0)
    ledger.saw("GPU-0", 13, 6.0)
    ledger.save()
    again = XidLedger(tmp_path, (48, 79))
    # Known also before the card is seen again: it may have been this error that took it away.
    assert again.of("GPU-0") == (XidCount(13, 1, 6.0), XidCount(79, 1, 5.0))
    again.watch("GPU-0")
    again.saw("GPU-0", 79, 7.0)
    assert again.of("GPU-0") == (XidCount(13, 1, 6.0), XidCount(48), XidCount(79, 2, 7.0))
    assert again.of("GPU-1") is None


def test_without_a_directory_nothing_is_written(tmp_path) -> None:
    ledger = XidLedger(None, ())
    ledger.saw("GPU-0", 79, 5.0)
    ledger.save()
    assert ledger.of("GPU-0") == (XidCount(79, 1, 5.0),)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"xids": {"GPU-0": {"x": {}}}}',
        '{"xids": {}, "kernel_log": {"boot": "b"}}',
        '{"xids": {"GPU-0": {"79": {"count": null, "last_at": 1}}}}',
    ],
)
def test_a_damaged_file_is_put_aside_and_costs_no_exporter(tmp_path, text, caplog) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    ledger = XidLedger(tmp_path, ())
    assert "damaged" in caplog.text
    assert (ledger.of("GPU-0"), ledger.is_first) == (None, False)
    assert (tmp_path / "xids.damaged").read_text() == text
    ledger.saw("GPU-0", 79, 5.0)
    ledger.save()
    assert XidLedger(tmp_path, ()).of("GPU-0") == (XidCount(79, 1, 5.0),)


def test_only_the_very_first_start_over_a_directory_is_the_first(tmp_path) -> None:
    # Also where nothing happened: later old lines of the kernel log must not look new.
    ledger = XidLedger(tmp_path, (79,))
    assert ledger.is_first
    ledger.save()
    assert not XidLedger(tmp_path, (79,)).is_first
    assert not XidLedger(None, ()).is_first


def test_a_file_that_cannot_be_read_says_so(tmp_path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        XidLedger(tmp_path, ())


def test_the_store_saves_with_a_heartbeat_and_at_the_end(tmp_path) -> None:
    bench = Bench(ledger=XidLedger(tmp_path, ()))

    def saved() -> dict:
        return json.loads((tmp_path / FILE_NAME).read_text())["xids"]["GPU-0"]

    bench.xid("GPU-0", 79)
    bench.store.apply(HeartbeatFrame(0))
    assert saved()["79"]["count"] == 1
    bench.xid("GPU-0", 79)
    bench.store.close()
    assert saved()["79"]["count"] == 2


def test_a_full_disk_costs_no_count(tmp_path) -> None:
    directory = tmp_path / "state"
    bench = Bench(ledger=XidLedger(directory, ()))
    directory.write_text("a file where the directory should be")
    bench.xid("GPU-0", 79)
    bench.store.apply(HeartbeatFrame(0))
    assert bench.store.snapshot().errors["xids", "storage"] == 1
    directory.unlink()
    bench.store.apply(HeartbeatFrame(0))
    assert (directory / FILE_NAME).exists()
    assert bench.gpu().xids == (XidCount(79, 1, bench.clock.time()),)


def test_a_card_whose_xids_nobody_tells_has_no_counts_and_one_that_is_gone_keeps_its_own() -> None:
    bench = Bench(gpus=2)
    bench.xid("GPU-1", 79)
    bench.enumerate(info(0))
    assert {one.xid: one.count for one in bench.gpu("GPU-1").xids} == {48: 0, 79: 1}
    bench.enumerate(info(0), info(1), watched=["GPU-0"])
    assert bench.gpu("GPU-1").xids is None


def test_a_storm_of_the_same_xid_is_logged_once_a_minute(monkeypatch) -> None:
    lines: list[str] = []
    # In-process command tests configure logging for good: this does not depend on it.
    monkeypatch.setattr(
        logging.getLogger("exporter.xid_watch"),
        "warning",
        lambda text, *args: lines.append(text % args),
    )
    bench = Bench()
    for _ in range(50):
        bench.xid("GPU-0", 79)
    assert lines == ["GPU GPU-0: Xid 79: GPU has fallen off the bus: reboot_host"]
    bench.advance(61)
    bench.xid("GPU-0", 79)
    assert len(lines) == 2
