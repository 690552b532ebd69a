"""`check`: how the GPUs, services and recoveries are, for a person; needs no running server."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from remediator.app import build_world
from remediator.cli.inspect import open_database
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.durations import format_duration
from remediator.engine.standing import standing
from remediator.errors import ManagerError, NoEvidence
from remediator.gpu_control.base import knob_named
from remediator.gpu_shares import cards_of, overcommitted
from remediator.log import printable
from remediator.playbooks import load as load_playbooks
from remediator.preflight import helper_concerns, manager_concerns
from remediator.readings import GpuReading
from remediator.store import Incident, Run, Step, Transaction
from remediator.store.inventory import ServiceRecord
from remediator.world import Service, World

_RUNS_TOLD = 3
_RECORDS_READ = 2000
# The run that an incident begins with is reserved in the moment before.
_RESERVED_BEFORE = 60.0


def check(config: Config) -> int:
    """GPUs, services and recoveries for a person; 0 healthy, 1 warning, 2 critical."""
    store = open_database(config)
    world = build_world(config, store, SystemClock())
    with store.reading() as tx:
        records = {name: tx.inventory.service(name) for name in world.services}
        cards = {name: cards_of(service, tx) for name, service in world.services.items()}
        worst = _check_gates(config, tx, world.clock.now())
    worst = max(worst, _check_gpus(world), _check_helper(world))
    worst = max(worst, _check_managers(world))
    for name, service in sorted(world.services.items()):
        worst = max(worst, _check_service(service, records[name], cards[name]))
    with store.reading() as tx:
        return max(worst, _check_recoveries(tx, world.clock.now()))


def _check_helper(world: World) -> int:
    said = list(helper_concerns(world, load_playbooks(world.config.playbooks)))
    for sentence in said:
        print(printable(sentence))
    return 1 if said else 0


def _check_managers(world: World) -> int:
    said = list(manager_concerns(world))
    for sentence in said:
        print(printable(sentence))
    return 1 if said else 0


def _check_gates(config: Config, tx: Transaction, now: float) -> int:
    """The first line: whether anything would be done at all."""
    found = standing(config, tx, now)
    own = [
        f"{playbook.name}: {playbook.mode}"
        for playbook in load_playbooks(config.playbooks).by_name.values()
        if playbook.mode is not None
    ]
    said = [f"mode {config.mode}" + (f" ({', '.join(own)})" if own else "")]
    if found.kill_switch is not None:
        said.append(f"KILL SWITCH pulled ({printable(found.kill_switch)})")
    if found.paused is not None:
        said.append(f"PAUSED ({printable(found.paused)})")
    said += [
        f"window {one.name} OPEN for another {format_duration(max(1.0, one.until - now))}"
        for one in found.windows
    ]
    if found.breaker is not None:
        said.append(f"breaker OPEN ({printable(found.breaker)})")
    if found.paused is not None or found.breaker is not None:
        said.append("`gpu-remediator resume` ends that")
    print("; ".join(said))
    if found.opted_out:
        print(f"opted out: {', '.join(found.opted_out)}")
    if found.breaker is not None:
        return 2
    return 1 if found.paused or found.kill_switch or found.windows else 0


def _check_service(service: Service, record: ServiceRecord, cards: int | None) -> int:
    probe = service.driver.probe()
    try:
        status = service.manager.status().detail
    except ManagerError as error:
        status = str(error)
    models = ", ".join(model.name for model in probe.models) or "no model loaded"
    held = ""
    if record.held:
        held = f"held by {record.held_by} ({printable(record.held_reason or '')}), "
    said = printable(f"{probe.state} ({probe.detail}); {status}; {models}")
    print(f"service {service.name}: {held}{said}")
    concern = overcommitted(service, probe, cards)
    if concern is not None:
        print(printable(concern))
    worst = 0 if concern is None else 1
    return worst if record.held or probe.state in ("ready", "loading", "sleeping") else 2


def _check_gpus(world: World) -> int:
    try:
        readings = world.gpus.all()
    except NoEvidence as error:
        print(f"GPUs: unknown: {error}")
        return 2
    if not readings:
        print("GPUs: none")
        return 2
    for reading in readings:
        print(_gpu_line(reading))
    worst = max({"healthy": 0, "warning": 1}.get(reading.health, 2) for reading in readings)
    reported = {reading.uuid for reading in readings}
    for name, service in sorted(world.services.items()):
        cards = service.config.gpus
        for uuid in () if cards == "all" else sorted(set(cards) - reported):
            print(
                f"service {name} is to use {uuid}, which the exporter does not report: correct its "
                "`gpus`, or find the card"
            )
            worst = 2
    return worst


def _gpu_line(reading: GpuReading) -> str:
    def shown(value: float | None, form: str) -> str:
        return "?" if value is None else form.format(value)

    taken = (
        f"{shown(reading.temperature, '{:.0f} °C')}, "
        f"{shown(reading.power_watts, '{:.0f} W')} of {shown(reading.power_limit_watts, '{:.0f} W')}, "
        f"utilisation {shown(reading.utilization_ratio, '{:.0%}')}"
    )
    watts = (reading.power_watts, reading.power_limit_watts)
    if {reading.temperature, reading.utilization_ratio, *watts} == {None}:
        taken = "no reading"
    return (
        f"GPU {reading.label}: {reading.health}"
        f"{'' if reading.up else ', fault ' + str(reading.fault)}, {taken}"
        f"{': ' + printable(reading.error_message) if reading.error_message else ''}"
    )


def _check_recoveries(tx: Transaction, now: float) -> int:
    incidents, leases, active = tx.incidents.open_all(), tx.leases.open_all(), tx.runs.active()
    for incident in incidents:
        for line in _incident_lines(tx, incident, now):
            print(line)
    for lease in leases:
        say = knob_named(lease.knob).say
        turned = "capped at" if lease.value < lease.original else "raised to"
        print(
            f"undo open: {lease.uuid} is {turned} {say(lease.value)}, "
            f"will be restored to {say(lease.original)}"
        )
    for run in active:
        print(f"run {run.id}: {run.playbook} on {run.target.key} is {run.state}")
        if run.state == "awaiting_approval":
            left = format_duration(max(1.0, (run.expires_at or now) - now))
            print(f"  gpu-remediator approve {run.id}, or deny {run.id}; it is refused in {left}")
    if not incidents and not leases and not active:
        print("recoveries: none under way")
    for line in _alert_lines(tx, {incident.episode_id for incident in incidents}, now):
        print(line)
    if any(incident.state == "needs_human" for incident in incidents):
        return 2
    return 1 if incidents or leases or active else 0


def _incident_lines(tx: Transaction, incident: Incident, now: float) -> Iterator[str]:
    """What it is about, what was tried, and how it is closed."""
    age = format_duration(max(1.0, now - incident.opened_at))
    yield (
        f"incident {incident.id}: {incident.trigger} on {incident.target.name or 'this machine'}: "
        f"{incident.state} ({incident.reason}), open for {age}"
    )
    runs = [
        run
        for run in tx.runs.recent(incident.opened_at - _RESERVED_BEFORE)
        if run.trigger == incident.trigger and run.target == incident.target
    ]
    for run in runs[-_RUNS_TOLD:]:
        yield from _run_lines(run, tx.runs.steps(run.id))
    if not runs:
        why = _last_said(tx, incident.episode_id, ("decision",))
        otherwise = f"its reason is {incident.reason}; see `gpu-remediator audit export`"
        yield f"  nothing was tried: {why or otherwise}"
    if incident.state == "needs_human":
        yield f"  once it is mended: gpu-remediator acknowledge {incident.id}"


def _run_lines(run: Run, steps: Sequence[Step]) -> Iterator[str]:
    said = f": {printable(run.sentence)}" if run.sentence else ""
    yield f"  run {run.id}, {run.playbook}, {run.state}{said}"
    for step in steps:
        mark = f"{step.state.upper()}: " if step.state in ("failed", "unknown") else ""
        yield f"    {step.action}: {mark}{printable(step.sentence)}"


def _alert_lines(tx: Transaction, told: Collection[int | None], now: float) -> Iterator[str]:
    """What fires and is no incident: an alert that waits, or that nothing more is done about."""
    for episode in tx.episodes.open_all():
        labels = episode.labels
        # The watchdog always fires.
        if episode.id in told or labels.get("severity") == "none":
            continue
        about = labels.get("uuid") or labels.get("llm_service") or "this machine"
        age = format_duration(max(1.0, now - episode.first_seen))
        why = _last_said(tx, episode.id, ("decision", "denied", "run_finished"))
        yield (
            f"alert {printable(episode.alertname)} on {printable(about)}, for {age}: "
            f"{why or 'not decided yet'}"
        )


def _last_said(tx: Transaction, episode: int | None, events: Sequence[str]) -> str | None:
    """The newest sentence of these kinds about an episode; None where there is none of late."""
    newest = tx.audit_records(max(0, tx.audit_count() - _RECORDS_READ), _RECORDS_READ)
    for record in reversed(newest):
        said = record.record
        if episode is not None and said["event"] in events and said["episode"] == episode:
            return printable(str(said["sentence"]))
    return None
