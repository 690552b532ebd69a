"""What is asked of the audit, in a program, on the command line and over HTTP."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator.durations import parse_moment
from remediator.store import Draft, Query, Store
from tests.remediator.edge.audit_chain import (
    DAY,
    old_chain,
    retire,
    verdict,
)
from tests.remediator.edge.support import KEY, in_process, write_config
from tests.remediator.engine.fakes import FakeClock


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, FakeClock]:
    return old_chain(tmp_path / "state")


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
