"""Runs, and all that belongs to them, are forgotten when nothing needs them any more, and not before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from remediator.config.model import AuditConfig, Config, Limits
from remediator.engine.retention import kept_for
from remediator.store import Run, Transaction
from remediator.store.rows import RunState
from remediator.targets import Target
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.test_leases import WARNING, heat_up_again

Make = Callable[..., Bench]
DAY = 86_400.0
KEPT = 400 * DAY
SERVICE = Target("service", "ollama")


def add_run(
    bench: Bench,
    *,
    state: RunState = "succeeded",
    episode: int | None = None,
    steps: tuple[str, ...] = (),
    target: Target = SERVICE,
) -> Run:
    """A run that ended now, with steps that were done."""
    now = bench.clock.now()
    with bench.store.transaction() as tx:
        run = tx.runs.create(
            episode_id=episode,
            playbook="recover-oom",
            weight=50,
            trigger="LLMServiceDown",
            target=target,
            locks=(),
            state="running",
            plan=[],
            now=now,
            expires_at=None,
            boot_id="an earlier boot",
        )
        assert run is not None
        tx.approvals.ask(run.id, {}, {})
        for seq, action in enumerate(steps or ("restart_service",)):
            where: dict[str, Any] = {"gpu": "GPU-1", "service": "ollama", "rung": 0}
            tx.runs.intend(
                run.id, seq, action=action, intent={}, sentence="", now=now, boot_id="", **where
            )
            tx.runs.finish_step(run.id, seq, "done", {}, "", now)
        if state not in ("running", "awaiting_approval"):
            tx.runs.end(run.id, state, "x", "", now)
        else:
            tx.runs.set_state(run.id, state, now)
    return run


def count(bench: Bench, table: str) -> int:
    with bench.store.reading() as tx:
        return int(tx._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def kept_runs(bench: Bench) -> list[int]:
    return [run.id for run in bench.runs]


def much_later(bench: Bench, seconds: float = KEPT + DAY) -> None:
    bench.clock.advance(seconds)
    bench.housekeeper.tick()


def test_a_run_is_forgotten_with_its_steps_and_its_approval_and_the_audit_tells(
    bench: Bench,
) -> None:
    for _ in range(3):
        add_run(bench)
    much_later(bench, KEPT - DAY)
    assert kept_runs(bench) == [1, 2, 3]
    much_later(bench, 2 * DAY)
    # The newest stays: its number must not be given to another.
    assert kept_runs(bench) == [3]
    assert (count(bench, "steps"), count(bench, "approvals")) == (1, 1)
    (record,) = bench.events("runs_forgotten")
    assert record["data"] == {"runs": 2, "first": 1, "last": 2}
    assert bench.audit_holds()
    assert add_run(bench).id == 4


def test_a_whole_incident_is_forgotten_to_its_last_row(bench: Bench) -> None:
    for _ in range(3):
        heat_up_again(bench)
    bench.clock.advance(3700)
    bench.pass_time(70)
    heat_up_again(bench)
    assert bench.open_leases == []
    assert bench.incident(WARNING) is None
    with bench.store.reading() as tx:
        assert tx.get_meta("flapping:3") == "paged"
    tables = ("runs", "steps", "leases", "incidents", "episodes", "deliveries")
    assert all(count(bench, table) for table in tables)
    bench.clock.advance(KEPT + DAY)
    bench.pass_time(10)
    with bench.store.reading() as tx:
        assert tx.get_meta("flapping:3") is None
    # The newest of each is kept for ever, and what belongs to the newest run.
    assert {table: count(bench, table) for table in tables} == dict.fromkeys(tables, 1)


@pytest.mark.parametrize("state", ["running", "awaiting_approval"])
def test_a_run_that_is_not_over_is_never_forgotten(bench: Bench, state: RunState) -> None:
    kept = add_run(bench, state=state)
    with bench.store.transaction() as tx:
        tx._db.execute("UPDATE runs SET expires_at = NULL")
    add_run(bench)
    much_later(bench)
    assert kept.id in kept_runs(bench)


def open_episode(bench: Bench, tx: Transaction, run: Run) -> None:
    bench.clock.advance(0)
    tx._db.execute(
        "INSERT INTO episodes (id, fingerprint, number, alertname, labels, starts_at, first_seen, "
        "last_seen) VALUES (70, 'f', 1, 'LLMServiceDown', '{}', 1, 1, 1)"
    )
    tx._db.execute("UPDATE runs SET episode_id = 70 WHERE id = ?", (run.id,))


def open_lease(bench: Bench, tx: Transaction, run: Run) -> None:
    values = {"uuid": "GPU-1", "knob": "power_limit", "control": "fake"}
    tx.leases.take(**values, original=1, value=2, run_id=run.id, now=bench.clock.now())


def open_incident(bench: Bench, tx: Transaction, run: Run) -> None:
    tx.incidents.put(
        episode_id=None,
        trigger=run.trigger,
        target=run.target,
        playbook=run.playbook,
        state="needs_human",
        reason="x",
        last_step="",
        now=bench.clock.now(),
    )


@pytest.mark.parametrize("what", [open_episode, open_lease, open_incident])
def test_a_run_that_something_open_rests_on_is_not_forgotten(
    bench: Bench, what: Callable[[Bench, Transaction, Run], None]
) -> None:
    kept = add_run(bench)
    add_run(bench, target=Target("service", "other"))
    add_run(bench, target=Target("service", "newest"))
    with bench.store.transaction() as tx:
        what(bench, tx, kept)
    bench.clock.advance(KEPT + DAY)
    # Its first look: an episode of which nobody speaks is over only some time later.
    bench.housekeeper.tick()
    assert kept_runs(bench) == [1, 3]


@pytest.mark.parametrize("action", ["stop_service", "reset_gpu"])
def test_the_newest_stop_of_a_service_and_reset_of_a_card_are_known_for_ever(
    bench: Bench, action: str
) -> None:
    add_run(bench, steps=(action,))
    bench.clock.advance(60)
    add_run(bench, steps=(action,))
    add_run(bench)
    add_run(bench)
    much_later(bench)
    assert kept_runs(bench) == [2, 4]


@pytest.mark.parametrize("keep", [0.0, 3600.0, 30 * DAY])
def test_runs_are_kept_for_as_long_as_any_gate_counts_them(keep: float) -> None:
    limits = Limits(cooldown=3 * DAY, breaker_relapse_window=9 * DAY)
    config = replace(Config("x"), audit=AuditConfig(keep=keep), limits=limits)  # type: ignore[arg-type]
    assert kept_for(config) == max(keep, 10 * DAY)
    assert kept_for(replace(config, limits=Limits())) == max(keep, 2 * DAY)


def test_a_clock_that_is_set_ahead_makes_no_run_old(bench: Bench) -> None:
    bench.card.heat_by_power(full=84.0, capped=76.0)
    bench.fire(WARNING)
    bench.act()
    bench.resolve(WARNING)
    bench.card.celsius = 70.0
    bench.pass_time(90)
    add_run(bench)
    bench.restart()
    bench.clock.set_by += KEPT + DAY
    bench.housekeeper.tick()
    assert kept_runs(bench) == [1, 2]


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("ahead", [8 * DAY, 365 * DAY, KEPT + DAY])
def test_nothing_is_forgotten_right_after_the_clock_has_jumped_ahead(
    bench: Bench, caplog: pytest.LogCaptureFixture, ahead: float, *, restarted: bool
) -> None:
    tables = ("deliveries", "episodes", "incidents", "leases", "runs", "audit")
    for _ in range(2):
        heat_up_again(bench)
    for _ in range(2):
        bench.fire("SomethingElse")
        bench.resolve("SomethingElse")
    bench.tick_housekeeper()
    before = {table: count(bench, table) for table in tables}
    bench.clock.set_by += ahead
    if restarted:
        bench.restart()
    for _ in range(5):
        bench.clock.advance(3601)
        bench.tick_housekeeper()
        if restarted:
            bench.restart()
    now = {table: count(bench, table) for table in tables}
    assert now.pop("audit") >= before.pop("audit")
    assert now == before
    assert "ahead: nothing is forgotten for 6h" in caplog.text
    # Nobody has set it right: then it is right.
    for _ in range(8):
        bench.clock.advance(3601)
        bench.tick_housekeeper()
    assert count(bench, "deliveries") == 1


def test_a_clock_that_was_set_right_again_is_believed_at_once(bench: Bench) -> None:
    add_run(bench)
    add_run(bench)
    bench.clock.advance(KEPT)
    bench.tick_housekeeper()
    bench.clock.set_by += 365 * DAY
    bench.restart()
    bench.tick_housekeeper()
    bench.clock.set_by -= 365 * DAY
    bench.restart()
    bench.clock.advance(3601)
    bench.tick_housekeeper()
    assert kept_runs(bench) == [2]


def test_however_much_is_old_each_look_forgets_so_much_and_the_next_goes_on(bench: Bench) -> None:
    first = add_run(bench)
    with bench.store.transaction() as tx:
        db, columns = (
            tx._db,
            "playbook, weight, destructive, safe, trigger, target_kind, target_name",
        )
        columns += ", state, plan, created_at, updated_at, ended_at, boot_id"
        many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1199) "
        db.execute(f"{many} INSERT INTO runs ({columns}) SELECT {columns} FROM runs, n")
        db.execute(
            f"{many.replace('1199', '12000')} INSERT INTO deliveries (received_at, digest, receiver, "
            "alerts, truncated) SELECT ?, '', '', 1, 0 FROM n",
            (first.created_at,),
        )
    much_later(bench)
    seen = [(count(bench, "runs"), count(bench, "deliveries"))]
    for _ in range(4):
        bench.clock.advance(2)
        bench.housekeeper.tick()
        seen.append((count(bench, "runs"), count(bench, "deliveries")))
    assert seen == [(700, 7000), (200, 2000), (1, 1), (1, 1), (1, 1)]


def test_what_is_forgotten_is_not_looked_for_among_all_that_is_kept(bench: Bench) -> None:
    """Deliveries wait for the store meanwhile. Counted in instructions of SQLite: no machine is slow."""
    add_run(bench, steps=("stop_service",))
    numbers = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 4000) "
    episode = "fingerprint, number, alertname, labels, starts_at, first_seen, last_seen, ended_at"
    run = (
        "id, episode_id, playbook, weight, destructive, safe, trigger, target_kind, target_name, state, "
        "plan, created_at, updated_at, ended_at, boot_id"
    )
    step = "run_id, seq, rung, action, service, state, intent, started_at, boot_id"
    incident = (
        "episode_id, trigger, target_kind, target_name, playbook, state, opened_at, updated_at"
    )
    now = bench.clock.now()
    with bench.store.transaction() as tx:
        for sql in (
            f"INSERT INTO episodes ({episode}) SELECT 'f' || i, 1, 'A', '{{}}', ?1, ?1, ?1, "
            "CASE WHEN i % 2 THEN ?1 ELSE ?1 - 40 * 86400 END FROM n",
            f"INSERT INTO runs ({run}) SELECT i, 2 * (i / 2), 'p', 1, 1, 0, 'T', 'gpu', 'g', 'failed', "
            "'[]', ?1 - old, ?1, ?1 - old, 'b' FROM "
            "(SELECT i, CASE WHEN i < 100 THEN 401 * 86400 ELSE 0 END AS old FROM n WHERE i < 2000)",
            f"INSERT INTO steps ({step}) SELECT i, 0, 0, 'stop_service', 'ollama', 'done', '{{}}', "
            "?1 + i, 'b' FROM n WHERE i < 2000",
            f"INSERT INTO incidents ({incident}, closed_at) SELECT 2 * (i / 2), 'T', 'gpu', 'g', 'p', "
            "'refuted', ?1, ?1, ?1 FROM n WHERE i < 2000",
        ):
            tx._db.execute(numbers + sql, (now,))
    spent = []
    bench.store._db.set_progress_handler(lambda: spent.append(1000), 1000)
    bench.housekeeper.tick()
    bench.store._db.set_progress_handler(None, 0)
    assert count(bench, "episodes") < 3100
    assert count(bench, "runs") < 1910
    assert sum(spent) < 1_000_000
    before = len(spent)
    bench.clock.advance(3700)
    bench.store._db.set_progress_handler(lambda: spent.append(1000), 1000)
    bench.housekeeper.tick()
    assert sum(spent[before:]) < 60_000, "there is nothing any more"
