"""The audit beside the database: its anchor, its segments, its keys, and what is asked of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from remediator.durations import parse_moment
from remediator.errors import StorageError
from remediator.store import Draft, Query, Store, segments
from remediator.store.store import Trail
from remediator.store.verify import Verdict
from tests.remediator.edge.support import KEY, alert, in_process, write_config
from tests.remediator.engine.fakes import FakeClock

DAY = 86400.0
RECORDS = 9
COLUMNS = "seq, record, prev_mac, mac"


def write(folder: Path, count: int, *, clock: FakeClock | None = None, **more: object) -> None:
    store = Store(folder, KEY, clock or FakeClock(), **more)
    for number in range(count):
        with store.transaction() as tx:
            tx.audit(Draft("decision", f"sentence {number}", data={"n": number}))
    store.close()


def verdict(folder: Path, key: bytes = KEY, *, without: bool = False, **trail: object) -> Verdict:
    beside = Trail.beside(folder)
    store = Store(
        folder,
        key,
        FakeClock(),
        read_only=True,
        trail=Trail(**{"anchor": beside.anchor, "segments": beside.segments} | trail),
    )
    try:
        with store.reading() as tx:
            return tx.verify_audit(without_segments=without)
    finally:
        store.close()


@contextlib.contextmanager
def tampering(folder: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who can write the database, and does not care for triggers."""
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        for name in ("audit_no_update", "audit_no_delete"):
            raw.execute(f"DROP TRIGGER {name}")
        yield raw
        raw.commit()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    write(tmp_path / "state", RECORDS)
    return tmp_path / "state"


def rows(folder: Path) -> list[tuple[int, str, str, str]]:
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        return raw.execute(f"SELECT {COLUMNS} FROM audit ORDER BY seq").fetchall()


def put(folder: Path, wanted: list[tuple[int, str, str, str]]) -> None:
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        raw.execute("DELETE FROM audit")
        raw.executemany(f"INSERT INTO audit ({COLUMNS}) VALUES (?, ?, ?, ?)", wanted)
        raw.commit()


Rows = list[tuple[int, str, str, str]]


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


# Retention


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, FakeClock]:
    """A chain of 40 records, one each ten days."""
    clock, folder = FakeClock(), tmp_path / "state"
    store = Store(folder, KEY, clock)
    for number in range(40):
        with store.transaction() as tx:
            tx.audit(Draft("decision", f"sentence {number}", alertname=f"Alert{number % 2}"))
        clock.advance(10 * DAY)
    store.close()
    return folder, clock


def retire(folder: Path, clock: FakeClock, keep: float) -> None:
    store = Store(folder, KEY, clock)
    try:
        while store.retire_audit(keep):
            pass
    finally:
        store.close()


def test_old_records_move_into_a_segment_and_the_chain_is_still_proven(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    retire(folder, clock, 100 * DAY)
    first = rows(folder)[0][0]
    assert 28 <= first <= 32
    found = verdict(folder)
    assert (found.broken_at, found.records, found.first) == (None, 42, 1)
    assert verdict(folder, without=True).broken_at is None
    assert verdict(folder, without=True).first == first


def test_a_segment_is_made_only_when_it_is_worth_while(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    retire(folder, clock, 395 * DAY)
    assert rows(folder)[0][0] == 1, "less than a week too old"


def test_a_record_of_a_clock_that_was_far_ahead_keeps_none_from_leaving(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    clock.passed += 10_000 * DAY
    write(folder, 1, clock=clock)
    clock.passed -= 10_000 * DAY
    write(folder, 20, clock=clock)
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    assert rows(folder)[0][0] > 55
    assert verdict(folder).broken_at is None
    clock.passed += 10_000 * DAY
    write(folder, 2, clock=clock)
    clock.passed -= 10_000 * DAY
    last = rows(folder)[-1][0]
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    assert [row[0] for row in rows(folder)][:2] == [last - 1, last], "its own time is not known"


def test_the_newest_record_never_leaves(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    clock.advance(1000 * DAY)
    retire(folder, clock, DAY)
    write(folder, 1, clock=clock)
    assert verdict(folder).broken_at is None


def segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "audit-segments").iterdir())


def test_whatever_is_done_to_a_segment_is_named(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    (file,) = segment_files(folder)
    lines = file.read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        last = number == len(lines) - 1
        for what, forged in (
            ("deleted", lines[:number] + lines[number + 1 :]),
            (
                "changed",
                [*lines[:number], lines[number].replace(b"1", b"2", 1), *lines[number + 1 :]],
            ),
            ("cut", lines[:number]),
            ("twice", lines[: number + 1] + lines[number:]),
        ):
            file.write_bytes(b"".join(forged))
            found = verdict(folder)
            assert found.broken_at is not None, (what, number)
            assert found.broken_at >= number or last, (what, number)
    file.unlink()
    assert verdict(folder).broken_at == 1
    assert file.name in verdict(folder).problem


def test_records_deleted_as_if_by_retention_are_named(chain: Path) -> None:
    with contextlib.closing(sqlite3.connect(chain / "remediator.db")) as raw:
        raw.execute("INSERT INTO audit_segments VALUES (1, 4, 'm', 'audit-1-4.jsonl', 's', 0)")
        raw.execute("DELETE FROM audit WHERE seq <= 4")
        raw.commit()
    assert verdict(chain).broken_at == 1
    assert verdict(chain, without=True).broken_at == 5, "no checkpoint tells of them"


def test_nothing_is_deleted_that_could_not_be_written_elsewhere(
    old: tuple[Path, FakeClock],
) -> None:
    folder, clock = old
    (folder / "audit-segments").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_nothing_is_deleted_that_the_disk_did_not_keep(
    old: tuple[Path, FakeClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = old
    put_down = segments._put
    monkeypatch.setattr(segments, "_put", lambda path, raw: put_down(path, raw[:-100]))
    with pytest.raises(StorageError, match="does not hold what was written"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_nothing_of_a_broken_chain_is_deleted(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    with contextlib.closing(sqlite3.connect(folder / "remediator.db")) as raw:
        raw.execute("DROP TRIGGER audit_no_update")
        raw.execute("UPDATE audit SET record = '{\"time\": 1}' WHERE seq = 3")
        raw.commit()
    with pytest.raises(StorageError, match="record 3 of the audit was changed"):
        retire(folder, clock, 100 * DAY)
    assert len(rows(folder)) == 40


def test_a_segment_whose_writer_died_is_written_anew(old: tuple[Path, FakeClock]) -> None:
    folder, clock = old
    shutil.copytree(folder, folder.with_name("then"))
    retire(folder, clock, 300 * DAY)
    (orphan,) = segment_files(folder)
    then = folder.with_name("then")
    (then / "audit-segments").mkdir()
    shutil.copy(orphan, then / "audit-segments")
    assert verdict(then).broken_at is None, "its records are still in the database"
    retire(then, clock, 100 * DAY)
    assert len(segment_files(then)) == 1
    assert verdict(then).broken_at is None


def other_chain(folder: Path, clock: FakeClock) -> None:
    """The database was lost, and a new one was begun beside the old one's segments."""
    for name in ("remediator.db", "remediator.db-wal", "remediator.db-shm"):
        (folder / name).unlink(missing_ok=True)
    write(folder, 3, clock=clock)


def restored(folder: Path, clock: FakeClock) -> None:
    """A backup from before the segment's last records were written was put back."""
    with tampering(folder) as raw:
        raw.execute("DELETE FROM audit")
        raw.execute("DROP TRIGGER audit_segments_no_delete")
        raw.execute("DELETE FROM audit_segments")
    put(folder, lines_of(segment_files(folder)[0])[:3])


def lines_of(file: Path) -> Rows:
    found = map(json.loads, file.read_text().splitlines()[:-1])
    return [tuple(one[name] for name in COLUMNS.split(", ")) for one in found]


@pytest.mark.parametrize("how", [other_chain, restored])
def test_a_segment_whose_records_are_nowhere_else_is_never_removed(
    old: tuple[Path, FakeClock], how: Callable[[Path, FakeClock], None]
) -> None:
    folder, clock = old
    retire(folder, clock, 200 * DAY)
    (file,) = segment_files(folder)
    was = file.read_bytes()
    how(folder, clock)
    clock.advance(1000 * DAY)
    with pytest.raises(StorageError, match="not in the database"):
        retire(folder, clock, DAY)
    assert file.read_bytes() == was


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


# Questions


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Store]:
    clock = FakeClock()
    store = Store(tmp_path / "state", KEY, clock)
    for draft in (
        Draft("alert_received", "1", alertname="Hot", data={"labels": {"uuid": "GPU-1"}}),
        Draft("decision", "2", alertname="Hot", target="gpu:GPU-1", episode=1),
        Draft("step_started", "3", run=7, target="gpu:GPU-1", data={"service": "vllm"}),
        Draft("decision", "4", alertname="Down", target="service:vllm"),
        Draft("alert_received", "5", alertname="Down", data={"labels": {"llm_service": "vllm"}}),
        Draft("paused", "6"),
    ):
        with store.transaction() as tx:
            tx.audit(draft)
        clock.advance(60)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("query", "sentences"),
    [
        (Query(), "123456"),
        (Query(gpu="GPU-1"), "123"),
        (Query(service="vllm"), "345"),
        (Query(alertname="Hot"), "12"),
        (Query(run=7), "3"),
        (Query(gpu="GPU-1", service="vllm"), "3"),
        (Query(gpu="GPU-2"), ""),
    ],
)
def test_records_are_found_by_what_they_are_about(
    asked: Store, query: Query, sentences: str
) -> None:
    with asked.reading() as tx:
        found = tx.audit_records(query=query)
        newest = tx.audit_tail(2, query)
        everything = tx.audit_records()
    assert "".join(record.record["sentence"] for record in found) == sentences
    assert [record.seq for record in newest] == [record.seq for record in found][-2:]
    matched = [record.seq for record in everything if query.matches(record.record)]
    assert matched == [record.seq for record in found], "a segment is asked in the same way"


def test_records_are_found_by_their_time(asked: Store) -> None:
    with asked.reading() as tx:
        times = [record.record["time"] for record in tx.audit_records()]
        query = Query(since=times[1], until=times[3])
        assert [record.seq for record in tx.audit_records(query=query)] == [2, 3, 4]


def test_a_question_by_card_uses_an_index(asked: Store) -> None:
    with contextlib.closing(sqlite3.connect(asked.path)) as raw:
        for column in ("gpu", "service"):
            plan = raw.execute(f"EXPLAIN QUERY PLAN SELECT seq FROM audit WHERE {column} = 'x'")
            assert f"audit_{column}" in plan.fetchone()[3]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 992_800.0), ("1000000", 1_000_000.0), ("1970-01-02T00:00:00+00:00", 86_400.0)],
)
def test_a_moment_is_said_in_three_ways(text: str, seconds: float) -> None:
    assert parse_moment(text, 1_000_000.0) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "99999999999999999999"])
def test_what_is_no_moment_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no moment"):
        parse_moment(text, 0.0)


Cli = Callable[..., tuple[int, str, str]]


def test_the_commands_ask_by_card_and_export_segments_too(
    cli: Cli, old: tuple[Path, FakeClock], tmp_path: Path
) -> None:
    folder, clock = old
    (folder / "audit.key").write_bytes(KEY)
    retire(folder, clock, 200 * DAY)
    config = f"--config.file={write_config(tmp_path)}"
    code, out, _ = cli("audit", "export", config)
    assert code == 0
    assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(1, 42))
    code, out, _ = cli("audit", "export", "--alert=Alert1", config)
    assert [json.loads(line)["seq"] for line in out.splitlines()] == list(range(2, 41, 2))
    code, out, _ = cli("audit", "tail", "--alert=Alert1", "--limit=1", config)
    assert "sentence 39" in out
    code, out, _ = cli("audit", "verify", config)
    assert (code, out.splitlines()[0].split(";")[0]) == (0, "41 records hold")
    anchor = folder / "audit.anchor"
    kept = anchor.read_bytes()
    anchor.unlink()
    code, out, _ = cli("audit", "verify", config)
    assert (code, "its end is not proven" in out) == (1, True)
    code, out, _ = cli("audit", "verify", "--without-anchor", config)
    assert (code, "its end is not proven" in out) == (0, True)
    anchor.write_bytes(kept)
    mac = verdict(folder).head
    assert cli("audit", "verify", f"--head=41:{mac[:12]}", config)[0] == 0
    code, out, _ = cli("audit", "verify", f"--head=41:{'0' * 12}", config)
    assert (code, out) == (1, "BROKEN: record 41 is not the one that was seen\n")
    code, out, _ = cli("audit", "verify", f"--head=99:{mac}", config)
    assert (code, "cut off" in out) == (1, True)


# What is served


def test_a_heat_alert_that_is_answered_503_reaches_the_emergency_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_process(tmp_path) as running:
        said = []
        worker = running.remediator.worker
        monkeypatch.setattr(worker.emergency, "_told", {})
        real = type(running.store).transaction

        def fails(*_: object) -> object:
            running.store.failing = True
            raise StorageError("the disk is full")

        monkeypatch.setattr(type(running.store), "transaction", fails)
        for name in ("GPUTemperatureShutdown", "LLMServiceDown"):
            reply = running.deliver(alert(name, uuid="GPU-1"))
            said.append(reply.status_code)
        monkeypatch.setattr(type(running.store), "transaction", real)
        told = [episode.alertname for _, episode in worker.emergency._told.values()]
        assert said == [503, 503]
        assert told == ["GPUTemperatureShutdown"], "only a stop for heat does not wait"


def test_the_audit_is_asked_over_http_as_on_the_command_line(tmp_path: Path) -> None:
    with in_process(tmp_path) as running:
        with running.store.transaction() as tx:
            tx.audit(Draft("decision", "one", target="gpu:GPU-1"))
            tx.audit(Draft("decision", "other", target="gpu:GPU-2"))
        client = running.client("read")
        found = client.get("/api/v1/audit?gpu=GPU-1&since=1h").json["records"]
        assert [record["sentence"] for record in found] == ["one"]
        assert client.get("/api/v1/audit?since=1970-01-01&until=1970-01-02").json["records"] == []
        assert client.get("/api/v1/audit?since=yesterday").status_code == 400
        page = client.get("/metrics").text
        head = running.store
        with head.reading() as tx:
            seq, mac = tx.audit_head()
        assert f"remediator_audit_records_total {float(seq)}" in page
        digest = next(
            float(line.split()[1])
            for line in page.splitlines()
            if line.startswith("remediator_audit_head_digest ")
        )
        assert int(digest) == int(mac[:12], 16)
        assert "remediator_audit_anchor_failing 0.0" in page
