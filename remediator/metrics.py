"""`/metrics` of the remediator: a collector over counters, the store and the newest views."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from remediator import __version__, actions
from remediator.counters import Counters
from remediator.engine.gathering import BREAKER, PAUSED
from remediator.engine.prober import Prober
from remediator.errors import StorageError
from remediator.gpu_shares import cards_of
from remediator.intake import Intake
from remediator.playbooks import NOTIFY, Playbooks
from remediator.probe_metrics import configured, gauge, probed, shares
from remediator.store import Incident, Lease
from remediator.store.inventory import ServiceRecord
from remediator.store.rows import OUTCOMES
from remediator.world import World


@dataclass(frozen=True)
class _Durable:
    """What one consistent read of the store gave."""

    incidents: tuple[Incident, ...]
    leases: tuple[Lease, ...]
    queue: int
    oldest: float | None
    audit_head: tuple[int, str]
    breaker: bool
    paused: bool
    services: tuple[ServiceRecord, ...]
    cards: dict[str, int | None]


class RemediatorCollector(Collector):
    """Fresh families on every scrape; a store that cannot be read leaves out what it held."""

    def __init__(
        self,
        world: World,
        playbooks: Playbooks,
        counters: Counters,
        intake: Intake,
        prober: Prober,
        stalled: Callable[[], float] | None = None,
    ) -> None:
        self._world = world
        self._counters = counters
        self._intake = intake
        self._prober = prober
        self._stalled = stalled
        make_known(counters, playbooks)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read anything."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield gauge(
            "remediator_build_info",
            "Version of the remediator.",
            ["version", "python_version"],
            [([__version__, platform.python_version()], 1)],
        )
        yield from self._counted()
        yield from self._counters.run_seconds.collect()
        if self._stalled is not None:
            yield gauge(
                "remediator_worker_stalled_seconds",
                "How long the worker has not looked for what is due.",
                [],
                [([], self._stalled())],
            )
        yield from self._delivery()
        durable = self._durable()
        storage = GaugeMetricFamily(
            "remediator_storage_failing", "1 while the store cannot commit or be read."
        )
        storage.add_metric([], float(durable is None or self._world.store.failing))
        yield storage
        if durable is not None:
            yield from self._stored(durable)
        yield from self._services(durable)

    def _counted(self) -> Iterator[Metric]:
        for name, text, labels, source in (
            (
                "remediator_alerts_received",
                "Alerts received, by name (unknown names are other) and status.",
                ["alertname", "status"],
                "alerts",
            ),
            (
                "remediator_deliveries_refused",
                "Deliveries that were refused; Alertmanager repeats only what was not stored.",
                ["reason"],
                "refused",
            ),
            (
                "remediator_decisions",
                "Decisions, also those not to act.",
                ["playbook", "decision", "reason"],
                "decisions",
            ),
            ("remediator_runs", "Runs that ended.", ["playbook", "outcome"], "runs"),
            ("remediator_actions", "Steps that ended.", ["action", "outcome"], "actions"),
            ("remediator_internal_errors", "Bugs that were caught.", ["work"], "errors"),
        ):
            family = CounterMetricFamily(name, text, labels=labels)
            for values, count in sorted(self._counters.get(source).items()):
                family.add_metric(list(values), count)
            yield family

    def _delivery(self) -> Iterator[Metric]:
        for name, text, value in (
            (
                "remediator_last_delivery_timestamp_seconds",
                "When Alertmanager last delivered anything.",
                self._intake.last_delivery,
            ),
            (
                "remediator_watchdog_last_received_timestamp_seconds",
                "When the Watchdog alert last came through: the whole path works.",
                self._intake.last_watchdog,
            ),
        ):
            family = GaugeMetricFamily(name, text)
            # What lies ahead was noted by a clock that was wrong, and would look fresh until then.
            if value is not None and value <= self._world.clock.now():
                family.add_metric([], value)
            yield family

    def _durable(self) -> _Durable | None:
        try:
            with self._world.store.reading() as tx:
                now = self._world.clock.now()
                return _Durable(
                    incidents=tx.incidents.open_all(),
                    leases=tx.leases.open_all(),
                    queue=len(tx.episodes.due(now)),
                    oldest=tx.episodes.oldest_due(),
                    audit_head=tx.audit_head(),
                    breaker=tx.get_meta(BREAKER) is not None,
                    paused=tx.get_meta(PAUSED) is not None,
                    services=tuple(tx.inventory.service(s) for s in self._world.services),
                    cards={n: cards_of(s, tx) for n, s in self._world.services.items()},
                )
        except StorageError:
            return None

    def _stored(self, durable: _Durable) -> Iterator[Metric]:
        incidents = GaugeMetricFamily(
            "remediator_incident_state",
            "1 for each open incident, by what the remediator says of it.",
            labels=[
                "trigger",
                "uuid",
                "llm_service",
                "playbook",
                "last_step",
                "reason",
                "state",
            ],
        )
        for one in durable.incidents:
            gpu = one.target.name if one.target.kind == "gpu" else ""
            service = one.target.name if one.target.kind == "service" else ""
            values = [one.trigger, gpu, service, one.playbook, one.last_step, one.reason, one.state]
            incidents.add_metric(values, 1)
        yield incidents
        ages, late = self._world.ages, self._world.config.timing.lease_overdue_after
        age = 0.0 if durable.oldest is None else max(0.0, self._world.clock.now() - durable.oldest)
        for name, text, value in (
            ("remediator_queue_depth", "Episodes that are due for a decision.", durable.queue),
            ("remediator_queue_oldest_seconds", "How long the oldest of them is due.", age),
            (
                "remediator_undo_leases",
                "Changed knobs that are to be restored.",
                len(durable.leases),
            ),
            (
                "remediator_undo_leases_overdue",
                "Changed knobs that are kept longer than they should be: hot, blind or refused.",
                sum(ages.of_lease(one, self._world.clock) > late for one in durable.leases),
            ),
            ("remediator_paused", "1 while an operator paused all actions.", durable.paused),
        ):
            family = GaugeMetricFamily(name, text)
            family.add_metric([], float(value))
            yield family
        yield gauge(
            "remediator_breaker_open",
            "1 while the breaker refuses destructive actions.",
            ["scope"],
            [(["host"], float(durable.breaker))],
        )
        records = CounterMetricFamily("remediator_audit_records", "Records in the audit chain.")
        records.add_metric([], durable.audit_head[0])
        yield records
        # Who scrapes this keeps the head of the chain on another machine.
        yield gauge(
            "remediator_audit_head_digest",
            "The first 48 bits of the mac of the newest audit record, as a number.",
            [],
            [([], float(int(durable.audit_head[1][:12], 16)))],
        )
        store = self._world.store
        yield gauge(
            "remediator_audit_anchor_failing",
            "1 while the head of the audit cannot be anchored, or is not the one that was.",
            [],
            [([], float(store.anchor.failing or bool(store.cut)))],
        )

    def _services(self, durable: _Durable | None) -> Iterator[Metric]:
        views, services = self._prober.views, self._world.services
        yield from configured(services)
        yield from probed(views)
        if durable is None:
            return
        yield from shares(services, views, durable.cards)
        yield gauge(
            "llm_service_held",
            "1 while the service is held down on purpose.",
            ["llm_service"],
            [([r.name], float(r.held)) for r in durable.services],
        )
        restarts = CounterMetricFamily(
            "llm_service_restarts", "Restarts by the remediator.", labels=["llm_service"]
        )
        out_of_memory = CounterMetricFamily(
            "llm_service_out_of_memory",
            "How often the service ran out of memory, of a GPU or of the host.",
            labels=["llm_service"],
        )
        for record in durable.services:
            restarts.add_metric([record.name], record.restarts)
            out_of_memory.add_metric([record.name], record.out_of_memory)
        yield from (restarts, out_of_memory)


def registry_for(collector: RemediatorCollector) -> CollectorRegistry:
    """A registry of our own: the default one would read the world at registration."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(collector)
    return registry


def make_known(counters: Counters, playbooks: Playbooks) -> None:
    """Zero what is known to be possible, so that `increase()` sees the first event."""
    for name in (*playbooks.by_name, NOTIFY):
        for outcome in OUTCOMES:
            counters.zero("runs", name, outcome)
    for action in (*actions.names(), "restore_power"):
        for state in ("done", "failed"):
            counters.zero("actions", action, state)
