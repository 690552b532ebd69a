"""Deadlines: silent episodes, expired approvals, incidents that are over, what is kept no longer."""

from __future__ import annotations

import logging

from remediator.durations import format_duration
from remediator.engine import left_down
from remediator.engine.approval import expired
from remediator.engine.clock_watch import ClockWatch
from remediator.engine.executor import Executor
from remediator.engine.leases import FLAPPING
from remediator.engine.retention import Forgetting
from remediator.errors import NoEvidence, StorageError
from remediator.signals.memory import Memory
from remediator.store import Draft, Incident, Run
from remediator.store.inventory import HOLDER
from remediator.targets import THIS_HOST
from remediator.world import World

log = logging.getLogger(__name__)

# The run that an incident begins with is reserved in the moment before.
_RESERVED_BEFORE = 60.0
# Below the least level that any alert about the host's memory has.
_HOST_MEMORY = Memory("warning", host_ratio=0.8)


class Housekeeper:
    """Every state has an end, even when nobody says so."""

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor
        # Each open episode as it was last heard of, and when that was noticed: by the monotonic
        # clock of this process, so that neither its absence nor a clock that was set is silence.
        self._heard: dict[tuple[int, int], float] = {}
        self._forgetting = Forgetting(world)
        self._clock_watch = ClockWatch(world)

    def note_start(self) -> None:
        """Record that this process starts, and what it takes over.

        A store that cannot be written ends nothing: undoing goes on without it.
        """
        try:
            self._record_start()
        except StorageError:
            log.exception("the start could not be recorded; no new action begins until it can")

    def _record_start(self) -> None:
        with self._world.store.transaction() as tx:
            active = tx.runs.active()
            leases = tx.leases.open_all()
            if self._world.store.cut:
                why = f"the audit was cut or exchanged: {self._world.store.cut}"
                tx.audit(Draft("audit_cut", why, severity="critical", reason="audit_cut"))
            tx.audit(
                Draft(
                    "started",
                    f"gpu-remediator starts in mode {self._world.config.mode}; it takes over "
                    f"{len(active)} unfinished run(s) and {len(leases)} undo lease(s)",
                    data={
                        "runs": [run.id for run in active],
                        "leases": [lease.id for lease in leases],
                        "allow": list(self._world.config.allow),
                    },
                )
            )

    def tick(self) -> None:
        """Look at every deadline now."""
        self._clock_watch.look()
        self._end_silent_episodes()
        self._expire_approvals()
        left_down.tell(self._world)
        self._close_incidents()
        self._forgetting.look()

    def _end_silent_episodes(self) -> None:
        ttl = self._world.config.timing.episode_ttl
        now = self._world.clock.monotonic()
        if self._world.store.failing:
            # What we could not take in we have not heard: that silence is ours.
            self._heard = {}
            return
        with self._world.store.reading() as tx:
            beats = tx.episodes.open_beats()
        self._heard = {key: self._heard.get(key, now) for key in beats}
        for episode_id, heartbeats in beats:
            if now - self._heard[episode_id, heartbeats] > ttl:
                self._end_silent(episode_id, heartbeats, ttl)

    def _end_silent(self, episode_id: int, heartbeats: int, ttl: float) -> None:
        with self._world.store.transaction() as tx:
            episode = tx.episodes.get(episode_id)
            if episode is None or episode.ended_at is not None:
                return
            if episode.heartbeats != heartbeats:
                return
            tx.episodes.end(episode.id, self._world.clock.now(), "silent")
            tx.audit(
                Draft(
                    "episode_silent",
                    f"{episode.alertname} was not heard of for {format_duration(ttl)}; "
                    "the episode is closed, which proves nothing about the fault",
                    severity="warning",
                    episode=episode.id,
                    alertname=episode.alertname,
                    reason="silent",
                )
            )

    def _expire_approvals(self) -> None:
        now = self._world.clock.now()
        with self._world.store.reading() as tx:
            waiting = [run for run in tx.runs.active() if run.state == "awaiting_approval"]
        for run in waiting:
            if expired(self._world, run):
                self._expire(run, now)

    def _expire(self, run: Run, now: float) -> None:
        with self._world.store.transaction() as tx:
            current = tx.runs.get(run.id)
            if current is None or current.state != "awaiting_approval":
                return
            tx.runs.end(run.id, "refused", "expired", "nobody approved it in time", now)
            if self._executor.pages(run.playbook):
                tx.incidents.put(
                    episode_id=run.episode_id,
                    trigger=run.trigger,
                    target=run.target,
                    playbook=run.playbook,
                    state="needs_human",
                    reason="expired",
                    last_step="",
                    now=now,
                )
            tx.audit(
                Draft(
                    "run_finished",
                    "refused: nobody approved it in time",
                    severity="warning",
                    run=run.id,
                    alertname=run.trigger,
                    target=run.target.key,
                    reason="expired",
                )
            )

    def _close_incidents(self) -> None:
        """An incident ends with its episode; one that needs a person only when it is seen good."""
        with self._world.store.reading() as tx:
            incidents = tx.incidents.open_all()
            fired = {i.id: self._fires(tx.episodes.get(i.episode_id or 0)) for i in incidents}
            busy = {i.id: bool(tx.runs.holders((i.target,))) for i in incidents}
            capped = {lease.uuid for lease in tx.leases.open_all()}
        for incident in incidents:
            if fired[incident.id] or busy[incident.id]:
                continue
            if incident.reason == FLAPPING and incident.target.name in capped:
                continue
            if incident.state != "needs_human":
                self._close(incident, "its alert is over")
            elif (why := self._seen_good(incident)) is not None:
                self._close(incident, why)

    @staticmethod
    def _fires(episode: object) -> bool:
        return episode is not None and getattr(episode, "ended_at", None) is None

    def _seen_good(self, incident: Incident) -> str | None:
        """Fresh evidence that the target is well; None without it."""
        target = incident.target
        if target.kind == "service" and target.name in self._world.services:
            return self._serves(target.name, self._models_not_loaded(incident))
        try:
            if target.kind == "host":
                return self._host_is_well()
            if target.kind != "gpu":
                return None
            reading = self._world.gpus.one(target.name)
        except NoEvidence:
            return None
        fresh = reading.fresh(self._world.config.timing.reading_max_age)
        if not fresh or reading.health != "healthy" or self._keeps_a_service_down(incident):
            return None
        return f"{reading.label} is fresh and healthy"

    def _keeps_a_service_down(self, incident: Incident) -> bool:
        """Whether its run has stopped a service that nothing will start again."""
        with self._world.store.reading() as tx:
            for name in self._world.services:
                record = tx.inventory.service(name)
                stop = tx.runs.last_stop(name) if record.held else None
                if stop is None or record.held_by != HOLDER:
                    continue
                run = tx.runs.get(stop.run_id)
                if run is not None and (run.trigger, run.target) == (
                    incident.trigger,
                    incident.target,
                ):
                    return True
        return False

    def _serves(self, name: str, wanted: frozenset[str]) -> str | None:
        """A server that answers, but has not what could not be loaded into it, is not well."""
        probe = self._world.services[name].driver.probe()
        if probe.state != "ready" or wanted - {model.name for model in probe.models}:
            return None
        return f"{name} answers"

    def _models_not_loaded(self, incident: Incident) -> frozenset[str]:
        """What the last run of the incident was to load, where that failed."""
        with self._world.store.reading() as tx:
            runs = [
                run
                for run in tx.runs.recent(incident.opened_at - _RESERVED_BEFORE)
                if run.trigger == incident.trigger and run.target == incident.target
            ]
            steps = tx.runs.steps(runs[-1].id) if runs else ()
        failed = (s for s in steps if s.state == "failed" and s.service == incident.target.name)
        return frozenset(model for step in failed for model in step.intent.get("models", ()))

    def _host_is_well(self) -> str | None:
        finding = _HOST_MEMORY.read(self._world, THIS_HOST)
        return finding.sentence if finding.state == "absent" else None

    def _close(self, incident: Incident, why: str) -> None:
        with self._world.store.transaction() as tx:
            tx.incidents.close(incident.id, self._world.clock.now())
            tx.audit(
                Draft(
                    "incident_closed",
                    f"{incident.trigger} on {incident.target.name} is closed: {why}",
                    episode=incident.episode_id,
                    alertname=incident.trigger,
                    target=incident.target.key,
                    reason=incident.state,
                )
            )
