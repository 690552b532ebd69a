"""`plan --replay`: what would have been done on a recorded day. It asks nobody and writes nothing.

Everything goes through the real intake, gates and plans, on a store that is thrown away. Evidence
is what was recorded; where none was, it is assumed, so that what is shown is the most that would
have been done. A run is taken to have helped.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from remediator import recorded
from remediator.app import has_database, open_store
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.config.model import Mode
from remediator.config.windows import check_playbooks
from remediator.counters import Counters
from remediator.engine.evaluator import Evaluator
from remediator.errors import ConfigError, NoEvidence
from remediator.intake import Intake
from remediator.log import printable
from remediator.playbooks import Playbooks
from remediator.playbooks import load as load_playbooks
from remediator.recorded import Day
from remediator.signals import Finding
from remediator.store import Run, Store
from remediator.targets import Target
from remediator.world import Service, World

# What is decided anew is, at most so often; what came is never late.
_STEP = 60.0
_RUN_TAKES = 60.0
_WORDS = {"run": "act", "ask": "ask a person", "observe": "only observe"}


def replay(config: Config, file: str, mode: Mode | None) -> int:
    """Print what would have been done about everything in `file`."""
    day = recorded.read(_text(file))
    if not day.deliveries:
        raise ConfigError(f"{file} holds no delivery, and no record of one")
    if mode is not None:
        config = replace(config, mode=mode)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # The throw-away store tells the log the same story as is printed.
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, logging.NOTSET)
        # Where the kill switch stands today says nothing about that day.
        config = replace(config, kill_switch_file=folder / "KILL")
        clock = _Clock(day.deliveries[0].time)
        store = Store(folder, b"", clock)
        stack.callback(store.close)
        _know_cards(config, store, day)
        Replay(config, day, clock, store).play()
    return 0


def _text(file: str) -> str:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None


def _know_cards(config: Config, store: Store, day: Day) -> None:
    """Which cards are ours: as configured, as `serve` has seen, else all of that day."""
    cards: Mapping[str, str] = {}
    if config.gpus.inventory != "auto":
        return
    if has_database(config):
        ours = open_store(config, SystemClock(), read_only=True)
        with contextlib.closing(ours), ours.reading() as tx:
            cards = tx.inventory.gpus()
    if not cards:
        named = (a.labels.get("uuid", "") for d in day.deliveries for a in d.notification.alerts)
        cards = {uuid: "" for uuid in sorted(set(named)) if uuid}
        if cards:
            print(f"nothing is known of our cards; all {len(cards)} of that day are taken for ours")
    with store.transaction() as tx:
        for uuid, name in cards.items():
            tx.inventory.remember_gpu(uuid, name, day.deliveries[0].time)


class _Clock:
    """Stands at the moment that is replayed."""

    def __init__(self, now: float) -> None:
        self.moment = now

    def now(self) -> float:
        return self.moment

    def monotonic(self) -> float:
        return self.moment

    def wait(self, event: threading.Event, seconds: float) -> bool:  # noqa: ARG002 - a clock's
        return event.wait(0)


class _Nobody:
    """Stands where the world would be asked; nobody is."""

    name = kind = unit = "a replay"

    def describe(self, verb: str) -> str:
        return verb

    def __getattr__(self, name: str) -> NoReturn:
        raise NoEvidence("a replay asks nobody")


@dataclass
class _Recorded:
    """The evidence of a playbook, as it was recorded."""

    day: Day
    clock: _Clock
    reasons: tuple[str, ...] = ("recorded", "not_recorded")
    fingerprint: str = ""

    def read(self, world: World, target: Target) -> Finding:  # noqa: ARG002 - a signal's
        found = self.day.found(self.fingerprint, self.clock.now())
        if found is None:
            return Finding("present", "not_recorded", "its evidence was not recorded: assumed")
        return Finding(found.found, found.reason, found.sentence)


class Replay:
    """Goes through a day."""

    def __init__(self, config: Config, day: Day, clock: _Clock, store: Store) -> None:
        self._day, self._clock, self._store = day, clock, store
        self._evidence = _Recorded(day, clock)
        self._books = books = load_playbooks(config.playbooks)
        check_playbooks(config.windows, tuple(books.by_name))
        blind = {
            name: replace(book, evidence=self._evidence) for name, book in books.by_name.items()
        }
        by_alert = {alert: blind[book.name] for alert, book in books.by_alert.items()}
        nobody: Any = _Nobody()
        world = World(
            config=config,
            clock=clock,
            store=store,
            gpus=nobody,
            control=nobody,
            services={one.name: Service(one, nobody, nobody) for one in config.services},
            stopping=threading.Event(),
            card_reset=nobody,
            release=nobody,
        )
        counters = Counters()
        self._intake = Intake(store, clock, counters, known_alerts=by_alert)
        self._evaluator = Evaluator(world, Playbooks(blind, by_alert), counters)
        self._told = 0
        self._tallies: dict[str, Counter[str]] = {}

    def play(self) -> None:
        """Go through it, and print what would have been done, and a table."""
        for delivery, after in zip(
            self._day.deliveries, [*self._day.deliveries[1:], None], strict=True
        ):
            self._clock.moment = max(self._clock.moment, delivery.time)
            self._intake.accept(delivery.notification)
            self._decide()
            # An hour after the last one nothing new would come of it.
            until = self._clock.moment + 3600.0 if after is None else after.time
            self._wait(until)
        self._print_table()

    def _wait(self, until: float) -> None:
        while True:
            with self._store.reading() as tx:
                due = tx.episodes.oldest_due()
                ends = [run.created_at + _RUN_TAKES for run in tx.runs.active()]
            moments = [moment for moment in (due, *ends) if moment is not None]
            next_look = max(min(moments, default=until), self._clock.moment + _STEP)
            if not moments or next_look >= until:
                return
            self._clock.moment = next_look
            self._end_runs()
            self._decide()

    def _decide(self) -> None:
        with self._store.reading() as tx:
            due = [tx.episodes.get(number) for number in tx.episodes.due(self._clock.moment)]
        for episode in due:
            if episode is not None:
                self._evidence.fingerprint = episode.fingerprint
                self._evaluator.evaluate(episode.id)
        self._tell()

    def _end_runs(self) -> None:
        now = self._clock.moment
        with self._store.transaction() as tx:
            for run in tx.runs.active():
                if run.state == "awaiting_approval":
                    if run.expires_at is not None and now > run.expires_at:
                        tx.runs.end(run.id, "refused", "expired", "", now)
                elif now >= run.created_at + _RUN_TAKES:
                    tx.runs.end(run.id, "succeeded", "replayed", "", now)
                    if run.episode_id is not None:
                        tx.episodes.decided(
                            run.episode_id, "ended:succeeded", now + _STEP, acted=True
                        )

    def _tell(self) -> None:
        with self._store.transaction() as tx:
            records = [one.record for one in tx.audit_records(self._told, 1000)]
            self._told += len(records)
            for record in records:
                if record["event"] == "run_reserved":
                    run = tx.runs.get(record["run"])
                    if run is not None and run.state != "awaiting_approval":
                        tx.runs.mark_destructive(run.id, destructive=self._interrupts(run))
                    if run is not None:
                        print(f"    {_steps(run)}")
                elif record["event"] == "decision":
                    self._tell_decision(record)
                elif record["event"] == "alert_received":
                    self._say(record, "fires")

    def _tell_decision(self, record: Mapping[str, Any]) -> None:
        decided, playbook = record["data"]["decision"], record["data"]["playbook"]
        tally = self._tallies.setdefault(playbook, Counter())
        tally[f"{_WORDS.get(decided, decided)} ({record['reason']})"] += 1
        self._say(record, record["sentence"])

    def _say(self, record: Mapping[str, Any], what: str) -> None:
        when = datetime.fromtimestamp(record["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        about = record["target"] or "-"
        print(f"{when} {printable(record['alertname'])} {about}: {printable(what)}")

    def _interrupts(self, run: Run) -> bool:
        book = self._books.by_name[run.playbook]
        return bool(book.rungs) and book.rungs[0].destructive

    def _print_table(self) -> None:
        print(f"\n{'playbook':<16} would")
        for name, tally in sorted(self._tallies.items()):
            said = ", ".join(f"{what} x{count}" for what, count in tally.most_common())
            print(f"{name:<16} {said}")
        print("times are UTC; nothing was run, and nobody was asked")


def _steps(run: Run) -> str:
    steps = (
        f"{step['step']['action']} on {step['service'] or step['gpu']}"
        for step in run.plan
        if step["rung"] == 0
    )
    return "would: " + "; ".join(steps)
