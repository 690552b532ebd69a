"""Gathers what the gates look at, and what follows from looking: a tripped breaker, lighter runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from remediator.config import Config
from remediator.config.model import Mode, Permission
from remediator.engine.kill_switch import why_pulled
from remediator.playbooks import PlannedStep, Playbook, Playbooks
from remediator.policy import breaker, gates
from remediator.policy.windows import ANY_GPU
from remediator.store import Draft, Episode, Run, Transaction
from remediator.targets import Target
from remediator.world import World

PAUSED = "paused"
BREAKER = "breaker"
BREAKER_CLOSED_AFTER = "breaker_closed_after_run"
_DAY = 86400.0


@dataclass(frozen=True)
class Gathered:
    """The gates' input; `trip` opens the breaker, `lighter` runs are to make way."""

    given: gates.GateInput
    trip: str | None
    lighter: tuple[Run, ...]

    def trip_breaker(self, tx: Transaction) -> None:
        """Open the breaker where the numbers say so; a plan only looks and does not call this."""
        if self.trip is not None and tx.get_meta(BREAKER) is None:
            tx.set_meta(BREAKER, self.trip)
            sentence = f"the breaker opened: {self.trip}"
            tx.audit(Draft("breaker_opened", sentence, severity="critical", reason="breaker_open"))

    def supersede(self, tx: Transaction) -> None:
        """Ask the lighter runs to make way; only once the heavier one's evidence is there."""
        for run in self.lighter:
            supersede(tx, run.id, self.given.playbook)


def supersede(tx: Transaction, run_id: int, by: str) -> None:
    """Ask a run to stop at its next safe point, for a heavier playbook."""
    run = tx.runs.get(run_id)
    if run is None or run.ended_at is not None or run.cancel_reason is not None:
        return
    tx.runs.request_cancel(run.id, "superseded")
    tx.audit(
        Draft(
            "superseded",
            f"run {run.id} ({run.playbook}) makes way for {by}",
            run=run.id,
            target=run.target.key,
            reason="superseded",
        )
    )


def gather(
    world: World,
    *,
    mode: Mode,
    playbook: Playbook,
    target: Target,
    destructive: bool,
    needs: Sequence[Permission],
    starts_at: float,
    acted: bool,
    busy: Sequence[Run],
    safe: bool = False,
    asking: int | None = None,
    steps: Sequence[PlannedStep] = (),
) -> Gathered:
    """Read everything that the gates need; writes nothing.

    A run that asks before a step (`asking`) is not part of its own past. A stop for heat (`safe`)
    is kept back by no budget but a storm of stops: so many hot cards at once are a broken sensor.
    `steps` are those that would be done.
    """
    now = world.clock.now()
    with world.store.reading() as tx:
        runs = world.ages.recent(tx, _DAY, world.clock)
        paused, opened = tx.get_meta(PAUSED), tx.get_meta(BREAKER)
        closed_after = int(tx.get_meta(BREAKER_CLOSED_AFTER) or 0)
    dated = [(run.id, _past(world, run)) for run in runs]
    dated = [(number, run) for number, run in dated if number != asking]
    past = tuple(run for _, run in dated)
    # By number, not by time: the clock may have been set since.
    counted = [run for number, run in dated if number > closed_after]
    trip = None
    if destructive and mode not in ("off", "observe"):
        if safe:
            opened = None
            same = [run for run in counted if run.playbook == playbook.name]
            trip = breaker.why_storm(now, same, target.key, world.config.limits)
        elif opened is None:
            trip = breaker.why_open(now, counted, target.key, world.config.limits)
    heaviest = max(busy, key=lambda run: run.weight, default=None)
    outweighed = heaviest is not None and heaviest.weight < playbook.weight
    given = gates.GateInput(
        now=now,
        mode=mode,
        paused=paused,
        allow=world.config.allow,
        needs=needs,
        destructive=destructive,
        playbook=playbook.name,
        weight=playbook.weight,
        target=target.key,
        starts_at=starts_at,
        alert_max_age=world.config.timing.alert_max_age,
        acted=acted,
        busy_with=None if heaviest is None else f"run {heaviest.id} ({heaviest.playbook})",
        busy_weight=0 if heaviest is None else heaviest.weight,
        past=past,
        settling_seconds=world.config.timing.settling,
        limits=world.config.limits,
        breaker_open=opened or trip,
        safe=safe,
        killed=killed(world.config),
        windows=world.config.windows,
        opted_out=opted_out(world.config),
        touches=touched(target, steps),
        near=_near(world, target, steps),
    )
    return Gathered(given, trip, tuple(busy) if outweighed else ())


def stopped_lately(world: World, playbook: str) -> set[str]:
    """The keys of what `playbook` interrupted within the breaker's window, as the breaker counts.

    Raises:
        StorageError: the store cannot be read.
    """
    window = world.config.limits.breaker_window
    with world.store.reading() as tx:
        closed_after = int(tx.get_meta(BREAKER_CLOSED_AFTER) or 0)
        runs = world.ages.recent(tx, window, world.clock)
    since = world.clock.now() - window
    return {
        run.target.key
        for run in runs
        if run.playbook == playbook
        and run.destructive
        and run.id > closed_after
        and _past(world, run).created_at > since
    }


def acted_already(tx: Transaction, playbooks: Playbooks, episode: Episode) -> bool:
    """Whether something was done about this alert, or another open one of the same fault."""
    return episode.acted or any(
        _same_fault(playbooks, other, episode) for other in tx.episodes.open_acted()
    )


def _same_fault(playbooks: Playbooks, other: Episode, episode: Episode) -> bool:
    """Alerts of one playbook about one target are one fault.

    Two jobs may scrape one card, and one fault may pass two thresholds.
    """
    answers = playbooks.for_alert
    return answers(other.alertname) is answers(episode.alertname) and all(
        other.labels.get(key) == episode.labels.get(key) for key in ("uuid", "llm_service")
    )


def close_breaker(tx: Transaction) -> None:
    """A person closes the breaker; what was counted before that does not open it again."""
    tx.set_meta(BREAKER, None)
    newest = tx.runs.latest(1)
    tx.set_meta(BREAKER_CLOSED_AFTER, str(newest[0].id if newest else 0))


def killed(config: Config) -> str | None:
    """Why the kill switch stops everything new; None while it is not pulled."""
    # Our own folder is made when the remediator first runs; until then nobody can have used it.
    configured = config.kill_switch_file is not None
    return why_pulled(config.kill_switch, needs_folder=configured)


def opted_out(config: Config) -> frozenset[str]:
    """The keys of the targets that nothing is done to."""
    services = {f"service:{one.name}" for one in config.services if not one.remediate}
    return frozenset(services | {f"gpu:{uuid}" for uuid in config.gpus.opted_out})


def touched(target: Target, steps: Sequence[PlannedStep]) -> frozenset[str]:
    """The keys of what `steps` work on."""
    services = {f"service:{step.service}" for step in steps if step.service}
    return frozenset({target.key, *services} | {f"gpu:{step.gpu}" for step in steps if step.gpu})


def _near(world: World, target: Target, steps: Sequence[PlannedStep]) -> Collection[str]:
    """The cards of the services that would be worked on: work on a card keeps them away, too."""
    names = {step.service for step in steps} | {target.name if target.kind == "service" else None}
    cards: set[str] = set()
    for service in (world.services.get(name) for name in names if name):
        if service is not None:
            gpus = service.config.gpus
            cards |= {ANY_GPU} if gpus == "all" else {f"gpu:{uuid}" for uuid in gpus}
    return cards


def _past(world: World, run: Run) -> gates.PastRun:
    created_at, ended_at = world.ages.dated(run, world.clock)
    return gates.PastRun(
        playbook=run.playbook,
        target=run.target.key,
        destructive=run.destructive,
        outcome=run.state,
        created_at=created_at,
        ended_at=ended_at,
        safe=run.safe,
    )
