"""Commands that only read: runs, audit. They work without a running server."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from remediator.app import has_database, open_store
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.errors import ConfigError, StorageError
from remediator.log import printable
from remediator.store import Query, Store, Transaction, segments
from remediator.web.api import run_json, step_json

_CSV = ("seq", "time", "event", "severity", "run", "alertname", "target", "reason", "sentence")


def runs(config: Config, run_id: int | None, limit: int) -> int:
    """The newest runs, or one with its steps and its story."""
    store = open_database(config)
    with store.reading() as tx:
        if run_id is None:
            for run in tx.runs.latest(limit):
                print(
                    f"{_time(run.created_at)}  run {run.id:<4} {run.state:<12} {run.playbook:<14} "
                    f"{run.target.key}  {printable(run.sentence)}"
                )
            return 0
        found = tx.runs.get(run_id)
        if found is None:
            print(f"there is no run {run_id}", file=sys.stderr)
            return 1
        print(json.dumps(run_json(found), indent=2))
        asked = tx.approvals.get(run_id)
        if asked is not None and found.state == "awaiting_approval":
            for what, how in sorted(asked.means.items()):
                print(f"  {what}: {printable(str(how))}")
            print(f"  gpu-remediator approve {run_id} --token={asked.token}")
        for step in tx.runs.steps(run_id):
            print(json.dumps(step_json(step), indent=2))
        for record in tx.audit_records(run=run_id):
            _print_record(record.public())
    return 0


def audit(config: Config, arguments: argparse.Namespace) -> int:
    """`verify` the chain, show its tail, or export it."""
    store = open_database(config)
    query = _query(arguments)
    with store.reading() as tx:
        if arguments.what == "verify":
            return _verify(tx, arguments)
        if arguments.what == "tail":
            for record in tx.audit_tail(arguments.limit, query):
                _print_record(record.public())
        else:
            _export(_all(tx, store.trail.segments, query), arguments.format)
    return 0


def _verify(tx: Transaction, arguments: argparse.Namespace) -> int:
    verdict = tx.verify_audit(without_segments=arguments.without_segments)
    if verdict.broken_at is not None:
        print(f"BROKEN: {verdict.problem}; {verdict.records} records before it hold")
        return 1
    if arguments.head is not None and (problem := _unlike(tx, *arguments.head)):
        print(f"BROKEN: {problem}")
        return 1
    print(f"{verdict.records} records hold; head {verdict.head}")
    if verdict.first > 1:
        print(f"records 1 to {verdict.first - 1} are in segments, which were not looked at")
    if verdict.anchored:
        return 0
    print("its end is not proven: there is no anchor")
    # A head that was seen elsewhere is what an anchor would be.
    return 0 if arguments.without_anchor or arguments.head is not None else 1


def _unlike(tx: Transaction, seq: int, begins: str) -> str:
    """Why the chain does not hold the head that somebody has seen; empty where it does."""
    found = tx.audit_records(seq - 1, 1)
    if not found or found[0].seq != seq:
        older = seq < tx.audit_first()
        return f"record {seq} is {'in a segment' if older else 'cut off: it was seen elsewhere'}"
    return "" if found[0].mac.startswith(begins) else f"record {seq} is not the one that was seen"


def _query(arguments: argparse.Namespace) -> Query:
    return Query(
        run=arguments.run,
        gpu=arguments.gpu,
        service=arguments.service,
        alertname=arguments.alert,
        since=arguments.since,
        until=arguments.until,
    )


def _export(found: Iterator[dict[str, Any]], form: str) -> None:
    if form == "jsonl":
        for record in found:
            print(json.dumps(record, sort_keys=True))
        return
    writer = csv.DictWriter(sys.stdout, _CSV)
    writer.writeheader()
    for record in found:
        writer.writerow({name: _cell(record[name]) for name in _CSV})


def _cell(value: object) -> object:
    """One line, and nothing that a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return "'" + text if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _all(tx: Transaction, folder: Path, query: Query) -> Iterator[dict[str, Any]]:
    """Every record that is meant, those in segments too."""
    try:
        yield from filter(query.matches, segments.records(folder, tx.audit_first()))
    except segments.Damaged as damage:
        raise StorageError(f"{damage}; `audit verify` says more") from None
    after = 0
    while records := tx.audit_records(after, 1000, query=query):
        for record in records:
            yield record.public()
        after = records[-1].seq


def _print_record(record: dict[str, Any]) -> None:
    mark = {"critical": "!!", "warning": "! "}.get(record["severity"], "  ")
    run = f"run {record['run']}" if record["run"] else ""
    print(
        f"{_time(record['time'])} {mark} {run:<8} {record['event']:<16} {printable(record['sentence'])}"
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def open_database(config: Config) -> Store:
    """What `serve` keeps, to be read only.

    Raises:
        ConfigError: there is none yet.
        StorageError: this user may not read it, or it cannot be read.
    """
    if not has_database(config):
        raise ConfigError(f"there is no database in {config.state_dir}: has `serve` ever run?")
    try:
        return open_store(config, SystemClock(), read_only=True)
    except StorageError as error:
        raise StorageError(f"{error}; run this as the user that runs gpu-remediator") from None
