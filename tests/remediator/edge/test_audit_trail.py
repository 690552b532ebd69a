"""The audit beside the database: its anchor and its keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from remediator.store import Draft, Store
from remediator.store.transaction import Trail
from tests.remediator.edge.audit_chain import (
    RECORDS,
    Rows,
    put,
    rows,
    tampering,
    verdict,
    write,
)
from tests.remediator.edge.support import KEY
from tests.remediator.engine.fakes import FakeClock


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    write(tmp_path / "state", RECORDS)
    return tmp_path / "state"


def renumbered(found: Rows) -> Rows:
    return [(number, *row[1:]) for number, row in enumerate(found, start=1)]


def linked(found: Rows) -> Rows:
    """The same with every `prev_mac` as the record before it says."""
    macs = ["0" * 64, *(row[3] for row in found)]
    return [(row[0], row[1], mac, row[3]) for row, mac in zip(found, macs, strict=False)]


def forgeries(found: Rows) -> Iterator[tuple[str, int, Rows]]:
    """Everything that can be done to whole records, with and without covering it up."""
    for number in range(len(found)):
        cut = found[:number] + found[number + 1 :]
        last = number == len(found) - 1
        yield f"delete {number + 1}", number + 1, cut
        if not last:
            yield f"delete {number + 1}, renumbered", number + 1, renumbered(cut)
            yield f"delete {number + 1}, relinked", number + 1, linked(renumbered(cut))
        yield f"cut after {number}", number + 1, found[:number]
        twice = found[: number + 1] + found[number:]
        yield f"insert after {number + 1}", number + 2, linked(renumbered(twice))
        changed = found[number][1].replace("sentence", "sentense")
        rest = found[number + 1 :]
        row = (number + 1, changed, *found[number][2:])
        yield f"change {number + 1}", number + 1, [*found[:number], row, *rest]
    for one, other in combinations(range(len(found)), 2):
        swapped = list(found)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        yield f"swap {one + 1} and {other + 1}", one + 1, renumbered(swapped)
        yield f"swap {one + 1} and {other + 1}, relinked", one + 1, linked(renumbered(swapped))


def test_whatever_is_done_to_whole_records_is_named(chain: Path) -> None:
    untouched = rows(chain)
    with tampering(chain):
        pass
    for what, seq, forged in forgeries(untouched):
        put(chain, forged)
        assert verdict(chain).broken_at == seq, what
    put(chain, untouched)
    assert verdict(chain).broken_at is None


def test_a_cut_tail_is_named_by_its_records(chain: Path) -> None:
    with tampering(chain) as raw:
        raw.execute("DELETE FROM audit WHERE seq > 6")
    found = verdict(chain)
    assert (found.records, found.broken_at) == (6, 7)
    assert "record 7 to 9 are cut off" in found.problem


def test_a_cut_tail_is_still_named_after_the_chain_has_grown_over_it(chain: Path) -> None:
    with tampering(chain) as raw:
        raw.execute("DELETE FROM audit WHERE seq > 6")
    write(chain, 20)
    assert verdict(chain).broken_at == 7
    store = Store(chain, KEY, FakeClock())
    assert store.cut == ""
    store.close()


def test_a_start_over_a_cut_chain_says_so(chain: Path) -> None:
    with tampering(chain) as raw:
        raw.execute("DELETE FROM audit WHERE seq > 6")
    store = Store(chain, KEY, FakeClock())
    assert "has seen record 9, the newest is 6" in store.cut
    store.close()


def test_the_anchor_may_lie_on_another_disk(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "head"
    other.parent.mkdir()
    trail = Trail(other, tmp_path / "segments")
    write(tmp_path / "state", 3, trail=trail)
    shutil.copytree(tmp_path / "state", tmp_path / "then")
    write(tmp_path / "state", 2, trail=trail)
    assert verdict(tmp_path / "state", anchor=other).anchored == 5
    found = verdict(tmp_path / "then", anchor=other)
    assert (found.broken_at, found.records) == (4, 3), "an older copy was put back"


def test_an_anchor_that_cannot_be_written_stops_nothing_and_is_told(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "nowhere" / "head", tmp_path / "segments")
    store = Store(tmp_path / "state", KEY, FakeClock(), trail=trail)
    with store.transaction() as tx:
        tx.audit(Draft("decision", "goes on"))
    assert store.anchor.failing
    trail.anchor.parent.mkdir()
    with store.transaction() as tx:
        tx.audit(Draft("decision", "goes on"))
    assert not store.anchor.failing
    store.close()
    assert verdict(tmp_path / "state", anchor=trail.anchor).anchored == 2


def test_a_torn_line_of_the_anchor_spoils_no_other(chain: Path) -> None:
    anchor = chain / "audit.anchor"
    with anchor.open("ab") as file:
        file.write(b"10 abcdef")
    write(chain, 1)
    assert verdict(chain).broken_at is None
    assert verdict(chain).anchored == RECORDS + 1


def test_the_anchor_does_not_grow_for_ever_and_forgets_no_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remediator.store.anchor._LARGEST", 2000)
    monkeypatch.setattr("remediator.store.anchor._SAY_EVERY", 10)
    folder = tmp_path / "state"
    write(folder, 100)
    assert (folder / "audit.anchor").stat().st_size < 4000
    assert verdict(folder).anchored == 100
    with tampering(folder) as raw:
        raw.execute("DELETE FROM audit WHERE seq > 95")
    assert verdict(folder).broken_at == 96
    with (folder / "audit.anchor").open("ab") as file:
        file.write(b"101 half a li")
    monkeypatch.setattr("remediator.store.anchor._LARGEST", 600)
    monkeypatch.setattr("remediator.store.anchor._SAY_EVERY", 1000)
    write(folder, 8)
    assert len((folder / "audit.anchor").read_text().splitlines()) < 15, "a new file was begun"
    assert verdict(folder).broken_at == 96


# Keys


def test_a_key_is_changed_without_breaking_the_chain(chain: Path) -> None:
    new = b"n" * 64
    trail = Trail(chain / "audit.anchor", chain / "segments", old_keys=(KEY,))
    store = Store(chain, new, FakeClock(), trail=trail)
    with store.transaction() as tx:
        tx.audit(Draft("decision", "with the new key"))
    store.close()
    assert verdict(chain, new, old_keys=(KEY,)).broken_at is None
    assert verdict(chain, new).broken_at == 1


def test_an_old_key_makes_no_new_records(chain: Path) -> None:
    new = b"n" * 64
    trail = Trail(chain / "audit.anchor", chain / "segments", old_keys=(KEY,))
    for key in (new, KEY):
        store = Store(chain, key, FakeClock(), trail=trail)
        with store.transaction() as tx:
            tx.audit(Draft("decision", "a record"))
        store.close()
    assert verdict(chain, new, old_keys=(KEY,)).broken_at == RECORDS + 2
