"""Finds what Alertmanager says and no delivery brought: its API, asked beside everything else.

A firing alert that we do not have is taken in as a delivery would be. What no Alertmanager lists
any more is not over because of that: absent is not good. It is only said, and ends as silence does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from remediator.alertmanager import Listed, Listing
from remediator.alertmanager_client import Lister
from remediator.clock import Clock
from remediator.counters import Counters
from remediator.errors import NoEvidence, StorageError
from remediator.intake import Intake
from remediator.store import Draft, Episode, Store

log = logging.getLogger(__name__)

# A transaction keeps deliveries waiting, so none is long.
_BATCH = 100
# A storm of truncated deliveries asks no more often than that (seconds).
_LEAST_PAUSE = 5.0
# What was delivered so short a time before may not be in an answer yet (seconds).
_FRESH = 60.0


@dataclass(frozen=True)
class Outlook:
    """What is known of the Alertmanagers.

    Attributes:
        succeeded_at: when one answered last and all of it was taken in (Unix seconds).
        reachable: by name, whether each answered the last time; absent before the first.
        unlisted: open episodes that none of them lists; None where not all of them answered.
    """

    succeeded_at: float | None = None
    reachable: Mapping[str, bool] = field(default_factory=dict)
    unlisted: int | None = None


class Reconciler:
    """Compares what we have with what Alertmanager has, in a thread of its own."""

    def __init__(
        self,
        listers: Sequence[Lister],
        receiver: str,
        interval: float,
        *,
        intake: Intake,
        store: Store,
        clock: Clock,
        counters: Counters,
        nudge: Callable[[], None],
    ) -> None:
        """Wire it; nothing is asked before `start`.

        Args:
            listers: the Alertmanagers.
            receiver: our name there.
            interval: seconds from one round to the next.
            intake: takes in what was missing.
            store: what we have.
            clock: the time.
            counters: where rounds are counted.
            nudge: called when an episode was opened.
        """
        self._listers = listers
        self._receiver = receiver
        self._interval = interval
        self._intake = intake
        self._store = store
        self._clock = clock
        self._counters = counters
        self._nudge = nudge
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: set[int] = set()
        self._misrouted = False
        self.outlook = Outlook()
        for name in ("reconciled", "reconcile_failures"):
            counters.zero(name)

    def start(self) -> None:
        """Begin, with a first round at once: what was missed while nobody listened is there."""
        if self._listers:
            self._thread = threading.Thread(target=self._loop, name="reconcile", daemon=True)
            self._thread.start()

    def ask_soon(self) -> None:
        """A delivery was cut: do not wait for the next round. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread; a request that is under way is not waited for."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except StorageError as error:
                self._counters.add("reconcile_failures")
                log.warning("what Alertmanager lists could not be compared: %s", error)
            except Exception:
                log.exception("what Alertmanager lists could not be compared")
                self._counters.add("errors", "reconcile")
            self._clock.wait(self._stopping, min(_LEAST_PAUSE, self._interval))
            self._clock.wait(self._wake, max(0.0, self._interval - _LEAST_PAUSE))
            self._wake.clear()

    def round(self) -> None:
        """Ask every Alertmanager once, and take in what is missing.

        Raises:
            StorageError: it could not be kept; the next round tries again.
        """
        began = self._clock.now()
        answers = {one.name: self._ask(one) for one in self._listers}
        reachable = {name: answer is not None for name, answer in answers.items()}
        listings = [answer for answer in answers.values() if answer is not None]
        self.outlook = Outlook(self.outlook.succeeded_at, reachable)
        if not listings:
            self._counters.add("reconcile_failures")
            return
        self._look_for_a_wrong_name(listings)
        self._take_in(_to_be_acted_on(listings, self._receiver))
        unlisted = self._unlisted(listings, began) if all(reachable.values()) else None
        self.outlook = Outlook(self._clock.now(), reachable, unlisted)

    def _ask(self, lister: Lister) -> Listing | None:
        before = self.outlook.reachable.get(lister.name, True)
        try:
            listing = lister.firing()
        except NoEvidence as error:
            if before:
                log.warning(
                    "Alertmanager %s cannot be asked: %s; what it does not deliver is not found "
                    "until it can",
                    lister.name,
                    error,
                )
            return None
        if not before:
            log.info("Alertmanager %s can be asked again", lister.name)
        return listing

    def _take_in(self, wanted: Sequence[Listed]) -> None:
        for first in range(0, len(wanted), _BATCH):
            opened = self._intake.reconcile(wanted[first : first + _BATCH])
            for _ in range(opened):
                self._counters.add("reconciled")
            if opened:
                self._nudge()

    def _unlisted(self, listings: Sequence[Listing], began: float) -> int:
        """How many open episodes none of them lists; each is told of once."""
        listed = {one.alert.fingerprint for listing in listings for one in listing.alerts}
        with self._store.reading() as tx:
            unlisted = [
                episode
                for episode in tx.episodes.silent_since(began - _FRESH)
                if episode.labels.get("remediate") == "true" and episode.fingerprint not in listed
            ]
        new = [episode for episode in unlisted if episode.id not in self._told]
        if new:
            with self._store.transaction() as tx:
                for episode in new:
                    tx.audit(_unlisted_record(episode))
        self._told = {episode.id for episode in unlisted}
        return len(unlisted)

    def _look_for_a_wrong_name(self, listings: Sequence[Listing]) -> None:
        """Alerts that are for a machine, and none of them for us: the name is probably wrong."""
        names = {one.receiver for listing in listings for one in listing.alerts}
        wrong = bool(names) and self._receiver not in names
        if wrong and not self._misrouted:
            log.warning(
                "alertmanager.receiver is %r, but all that fires with remediate=true is routed to "
                "%s: nothing is taken in; correct the key, or the routes",
                self._receiver,
                ", ".join(sorted(names)),
            )
        self._misrouted = wrong


def _to_be_acted_on(listings: Sequence[Listing], receiver: str) -> tuple[Listed, ...]:
    """The alerts for `receiver` that none of the Alertmanagers hides from it, each once.

    Silences are what peers of a cluster share; who has one is right.
    """
    hidden: set[str] = set()
    newest: dict[str, Listed] = {}
    for listing in listings:
        for one in listing.alerts:
            if one.receiver != receiver:
                continue
            key = one.alert.fingerprint
            if one.hidden:
                hidden.add(key)
            if key not in newest or newest[key].updated_at < one.updated_at:
                newest[key] = one
    return tuple(one for key, one in newest.items() if key not in hidden)


def _unlisted_record(episode: Episode) -> Draft:
    return Draft(
        "episode_unlisted",
        f"no Alertmanager lists {episode.alertname} any more, and none said that it is resolved; "
        "that proves nothing about the fault, and the episode stays open until it has been silent "
        "for timing.episode_ttl",
        severity="warning",
        episode=episode.id,
        alertname=episode.alertname,
        reason="unlisted",
    )
