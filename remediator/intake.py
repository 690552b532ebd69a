"""Takes a notification in: one transaction for the whole batch, then it may be answered 202.

Idempotent: a delivery that comes twice, late or from a second Alertmanager changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from remediator.alertmanager import Alert, Listed, Notification
from remediator.clock import Clock
from remediator.counters import Counters
from remediator.store import Draft, Episode, Store, Transaction
from remediator.together import Together

WATCHDOG = "Watchdog"
_WATCHDOG_META = "watchdog_last_received"
# A firing notification that was overtaken by its own resolved one comes at most this long after
# it. Later, a start before that end means that Alertmanager lost and found the alert again, or that
# somebody repeats what was said once: it is that same firing, which is acted on once.
LATE_SECONDS = 60.0
# Two Prometheus see the same firing begin at most this far apart. A later start is another firing,
# and the end of the one that we know was never delivered.
DRIFT_SECONDS = 60.0
# Deliveries that come at the same time are one commit, so long as it has no more alerts.
_ALERTS_TOGETHER = 200
# What the audit calls an alert that Alertmanager's API had and no delivery brought.
RECONCILED = "reconciled"


class Intake:
    """Turns notifications into episodes."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        counters: Counters,
        *,
        known_alerts: Iterable[str] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self.know(known_alerts)
        self._together = Together(self._commit, lambda one: len(one.alerts), _ALERTS_TOGETHER)
        with store.reading() as tx:
            self.last_delivery = tx.episodes.last_delivery()
            text = tx.get_meta(_WATCHDOG_META)
            self.last_watchdog = None if text is None else float(text)

    def know(self, alerts: Iterable[str]) -> None:
        """Count these alerts by their names; all others together."""
        self._known_alerts = frozenset(alerts) | {WATCHDOG}

    def accept(self, notification: Notification) -> int:
        """Commit the notification; returns how many episodes it opened.

        Raises:
            StorageError: nothing of it was kept; the sender must try again.
        """
        now, opened = self._together.do(notification)
        self.last_delivery = now
        for alert in notification.alerts:
            # A name that anybody may invent must not become a series, or a counter, of its own.
            name = alert.name if alert.name in self._known_alerts else "other"
            self._counters.add("alerts", name, alert.status)
            if alert.name == WATCHDOG and alert.status == "firing":
                self.last_watchdog = now
        return opened

    def _commit(self, notifications: Sequence[Notification]) -> list[tuple[float, int]]:
        """Keep them, all in one transaction; when that was, and how many episodes each opened."""
        now = self._clock.now()
        with self._store.transaction() as tx:
            return [(now, self._keep(tx, one, now)) for one in notifications]

    def _keep(self, tx: Transaction, notification: Notification, now: float) -> int:
        tx.episodes.record_delivery(
            now,
            notification.digest,
            notification.receiver,
            len(notification.alerts),
            notification.truncated,
        )
        opened = sum(self._one(tx, alert, now) for alert in notification.alerts)
        if notification.truncated:
            tx.audit(
                Draft(
                    "truncated",
                    f"Alertmanager cut {notification.truncated} alerts off this delivery; "
                    "what is missing is not clear",
                    severity="warning",
                    reason="truncated",
                )
            )
        return opened

    def reconcile(self, found: Sequence[Listed]) -> int:
        """Take firing alerts in that Alertmanager lists; returns how many episodes that opened.

        It is no delivery: what it opens is marked in the audit, and the way of deliveries is not
        taken for open because of it.

        Raises:
            StorageError: nothing of it was kept.
        """
        now = self._clock.now()
        opened = 0
        with self._store.transaction() as tx:
            for one in found:
                if one.alert.name != WATCHDOG and not _is_known_to_be_over(tx, one):
                    opened += self._one(tx, one.alert, now, RECONCILED)
        return opened

    def _one(self, tx: Transaction, alert: Alert, now: float, source: str = "") -> int:
        if alert.name == WATCHDOG:
            # Its end says that Prometheus is silent: that way does not work.
            if alert.status == "firing":
                tx.set_meta(_WATCHDOG_META, str(now))
            return 0
        open_episode = tx.episodes.open_for(alert.fingerprint)
        if alert.status == "resolved":
            if open_episode is not None and not _of_an_earlier_firing(alert, open_episode):
                # An end that lies ahead of our clock would make every later firing look overtaken.
                ended_at = min(alert.ends_at or now, now)
                tx.episodes.end(open_episode.id, ended_at, "resolved", heard_at=now)
                self._audit(
                    tx, "alert_resolved", f"{alert.name} is resolved", open_episode.id, alert
                )
                self._cancel_waiting(tx, open_episode.id, now, "resolved", "the alert is resolved")
            return 0
        if open_episode is not None:
            if alert.starts_at - open_episode.starts_at <= DRIFT_SECONDS:
                tx.episodes.heartbeat(open_episode.id, now)
                return 0
            self._end_refired(tx, open_episode, alert, now)
        last = tx.episodes.last_for(alert.fingerprint)
        if (
            open_episode is None
            and last is not None
            and last.ended_at is not None
            and alert.starts_at <= last.ended_at
        ):
            # A clock that was set back has not made it late.
            is_late = 0 <= now - last.last_seen < LATE_SECONDS
            return 0 if is_late else self._reopen(tx, last, alert, now)
        episode = tx.episodes.open(alert, last.number + 1 if last else 1, now)
        what = f"{alert.name} fires"
        if source:
            what += ", which Alertmanager says and no delivery said,"
        self._audit(tx, "alert_received", what, episode.id, alert, source=source)
        return 1

    def _reopen(self, tx: Transaction, episode: Episode, alert: Alert, now: float) -> int:
        """It goes on, whatever we took for its end; what was done about it is done."""
        tx.episodes.reopen(episode.id, now)
        what = f"{alert.name} fires on since before its last end: the same episode goes on"
        self._audit(tx, "alert_found_again", what, episode.id, alert, reason="found_again")
        return 1

    def _end_refired(self, tx: Transaction, episode: Episode, alert: Alert, now: float) -> None:
        """It fires anew, so it must have ended in between."""
        tx.episodes.end(episode.id, min(alert.starts_at, now), "refired")
        what = f"{alert.name} has begun anew: its end was never delivered"
        self._audit(tx, "alert_refired", what, episode.id, alert, reason="refired")
        self._cancel_waiting(tx, episode.id, now, "refired", "the alert has begun anew")

    @staticmethod
    def _cancel_waiting(
        tx: Transaction, episode_id: int, now: float, reason: str, why: str
    ) -> None:
        """The end of an episode cancels what still waits for a person, and nothing that has begun."""
        for run in tx.runs.active():
            if run.episode_id == episode_id and run.state == "awaiting_approval":
                tx.runs.end(run.id, "cancelled", reason, why, now)
                tx.audit(
                    Draft(
                        "run_finished",
                        f"cancelled: {why}",
                        run=run.id,
                        episode=episode_id,
                        alertname=run.trigger,
                        target=run.target.key,
                        reason=reason,
                    )
                )

    @staticmethod
    def _audit(
        tx: Transaction,
        event: str,
        what: str,
        episode_id: int,
        alert: Alert,
        reason: str = "",
        source: str = "",
    ) -> None:
        where = alert.labels.get("uuid") or alert.labels.get("llm_service") or ""
        tx.audit(
            Draft(
                event,
                f"{what} for {where}" if where else what,
                episode=episode_id,
                alertname=alert.name,
                reason=reason,
                data={
                    "labels": dict(alert.labels),
                    "starts_at": alert.starts_at,
                    **({"source": source} if source else {}),
                },
            )
        )


def _of_an_earlier_firing(resolved: Alert, episode: Episode) -> bool:
    """A `resolved` that was overtaken by the next firing says nothing about that one."""
    if resolved.starts_at < episode.starts_at - DRIFT_SECONDS:
        return True
    return resolved.ends_at is not None and resolved.ends_at < episode.starts_at


def _is_known_to_be_over(tx: Transaction, listed: Listed) -> bool:
    """Whether we heard its end, and this Alertmanager was not told of it again since.

    In a cluster one may still hold an alert for minutes that another has seen end.
    """
    last = tx.episodes.last_for(listed.alert.fingerprint)
    return (
        last is not None
        and last.ended_at is not None
        and listed.alert.starts_at <= last.ended_at
        and listed.updated_at <= last.ended_at + LATE_SECONDS
    )
