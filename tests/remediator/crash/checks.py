"""What must be true after everything, wherever it died or failed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from remediator.store.rows import OUTCOMES
from tests.remediator.crash.stories import Story


def problems(story: Story) -> Iterator[str]:
    """Each sentence is a promise that was broken."""
    bench = story.bench
    done = story.done()
    for what, count in done.items():
        if count > story.most.get(what, 0):
            yield f"{what}: done {count} times"
    with contextlib.closing(sqlite3.connect(story.folder / "remediator.db")) as raw:
        fine = raw.execute("PRAGMA integrity_check").fetchone()[0]
        if fine != "ok":
            yield f"the database is broken: {fine}"
        if astray := raw.execute("PRAGMA foreign_key_check").fetchall():
            yield f"rows belong to what is not there: {astray}"
        known = {row[0] for row in raw.execute("SELECT alertname FROM episodes")}
        still = {
            row[0] for row in raw.execute("SELECT alertname FROM episodes WHERE ended_at IS NULL")
        }
    for source in story.sources:
        if "firing" in source.answers and source.alertname not in known:
            yield f"{source.alertname} was answered 202 and is lost"
        if source.answers[-1:] == ["resolved"] and source.alertname in still:
            yield f"the end of {source.alertname} was answered 202 and is lost"
    with bench.store.reading() as tx:
        verdict = tx.verify_audit()
        leases = tx.leases.open_all()
    if verdict.broken_at is not None:
        yield f"the audit is broken: {verdict.problem}"
    yield from _of_runs(story, done)
    yield from story.untrue()
    if leases or any(card.watts != 400.0 for card in bench.cards.values()):
        yield f"a knob is not back: {leases}, {[card.watts for card in bench.cards.values()]}"
    # What a person was called for may go on: a card whose reset was cut off still asks for one.
    called = any(one["severity"] == "critical" for one in bench.events("run_finished"))
    if not story.over() and not called:
        yield "it never came to an end"


def _of_runs(story: Story, done: dict[str, int]) -> Iterator[str]:
    bench = story.bench
    ended = bench.events("run_finished")
    told = {record["run"] for record in ended if record["severity"] == "critical"}
    journaled = {step.action for run in bench.runs for step in bench.steps(run.id)}
    for run in bench.runs:
        if run.state not in OUTCOMES:
            yield f"run {run.id} has not ended: {run.state}"
        elif run.state not in (*story.ends, "refused", "cancelled"):
            yield f"run {run.id} ended {run.state}: {run.reason}: {run.sentence}"
        if run.state == "succeeded" and any(source.fires for source in story.sources):
            yield f"run {run.id} is said to have succeeded while the fault is there"
        if run.state in ("ambiguous", "failed") and run.id not in told:
            yield f"run {run.id} ended {run.state} and nobody is called"
        for step in bench.steps(run.id):
            if step.state == "intended":
                yield f"step {step.action} of run {run.id} has no end"
    if any(done.values()) and not bench.runs:
        yield f"done without a run: {done}"
    undone = list(bench.events("undone"))
    caps = sum(
        count for what, count in done.items() if what.startswith("write ") and "400" not in what
    )
    if caps and not undone and "reset_gpu" not in journaled:
        yield "a cap was written and its undo is not recorded"
