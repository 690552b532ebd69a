"""`plan`: what would be decided and done about an alert, with every argv; nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from remediator import alertmanager
from remediator.actions import StepContext
from remediator.app import Remediator, build, has_database, open_store
from remediator.cli.check_config import lacking
from remediator.cli.replay import replay
from remediator.clock import Clock, SystemClock
from remediator.config import Config
from remediator.engine.reservation import Considered
from remediator.errors import ConfigError, NoEvidence
from remediator.inventory import host_instance, kind_of, known_gpus
from remediator.log import printable
from remediator.playbooks import Playbook, stage_name
from remediator.store import Episode, Store
from remediator.targets import NO_TARGET
from remediator.world import World

_NO_SUCH_NAME = ("not_in_inventory", "no_playbook")
# Of these the decision itself says what becomes of the steps.
_ACCEPTED = ("run", "ask", "observe")


def plan(config: Config, arguments: argparse.Namespace) -> int:
    """Print the decision and the steps for each alert."""
    if arguments.replay:
        return replay(config, arguments.replay, arguments.mode)
    clock = SystemClock()
    with contextlib.ExitStack() as stack:
        store = _store(config, clock, stack)
        stack.callback(store.close)
        remediator = build(config, clock, store)
        if arguments.uuid:
            arguments.uuid = _meant(remediator.world, arguments.uuid)
        for episode in _episodes(arguments, clock, host_instance(config)):
            considered = remediator.evaluator.consider(episode)
            _print(remediator, episode, considered)
            unknown = considered.decision.reason in _NO_SUCH_NAME
            if unknown and arguments.alert:
                # Named by hand it is a slip; a delivery may well be about others.
                if considered.decision.reason == "no_playbook":
                    answered = ", ".join(sorted(remediator.playbooks.by_alert)) or "none"
                    print(f"alerts with a playbook: {answered}")
                return 1
    return 0


def _store(config: Config, clock: Clock, stack: contextlib.ExitStack) -> Store:
    """The store as it is; an empty one that is thrown away where `serve` has never run."""
    if has_database(config):
        return open_store(config, clock, read_only=True)
    empty = stack.enter_context(tempfile.TemporaryDirectory())
    return Store(Path(empty), b"", clock)


def _episodes(arguments: argparse.Namespace, clock: Clock, host: str) -> list[Episode]:
    """What is planned for; an alert that names no card and no service is about this machine."""
    now = clock.now()
    if arguments.alert:
        labels = {
            "alertname": arguments.alert,
            "instance": host,
            **({"uuid": arguments.uuid} if arguments.uuid else {}),
            **({"llm_service": arguments.service} if arguments.service else {}),
        }
        return [_episode(labels, now, now)]
    try:
        body = (
            sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
        )
    except OSError as error:
        raise ConfigError(f"cannot read {arguments.file}: {error.strerror}") from None
    notification = alertmanager.parse(body)
    return [_episode(dict(a.labels), a.starts_at, now) for a in notification.alerts]


def _episode(labels: dict[str, str], starts_at: float, now: float) -> Episode:
    return Episode(
        id=0,
        fingerprint="",
        number=0,
        alertname=labels["alertname"],
        labels=labels,
        starts_at=starts_at,
        first_seen=now,
        last_seen=now,
        heartbeats=0,
        ended_at=None,
        last_reason=None,
        acted=False,
    )


def _print(remediator: Remediator, episode: Episode, considered: Considered) -> None:
    world, decision = remediator.world, considered.decision
    where = considered.target.key if considered.target.name else "no target of ours"
    print(f"{printable(episode.alertname)} -> {considered.playbook} on {where}")
    print(f"decision: {decision.kind} ({decision.reason}): {printable(decision.sentence)}")
    if considered.target == NO_TARGET:
        _print_known(world, remediator.playbooks.for_alert(episode.alertname), episode.labels)
    if considered.plan is None or not considered.plan.steps:
        print("steps: none")
        return
    if decision.kind not in _ACCEPTED:
        print("would be, if it were accepted:")
    playbook = remediator.playbooks.by_name[considered.playbook]
    for number, step in enumerate(considered.plan.steps, start=1):
        service = world.services.get(step.service) if step.service else None
        context = StepContext(world, step.gpu, service, threading.Event())
        missing = lacking(playbook.stages[step.rung], world.config.allow)
        mark = f" [refused: allow lacks {', '.join(missing)}]" if missing else ""
        stage = stage_name(step.rung)
        print(f"  {number}. {stage}: {step.action.describe(context)}{mark}")
    if considered.plan.problem:
        print(f"  and no further: {considered.plan.problem}")
    print("nothing was run")


def _print_known(world: World, playbook: Playbook | None, labels: Mapping[str, str]) -> None:
    """What a name that is not ours could have been."""
    kind = kind_of(("gpu", "service") if playbook is None else playbook.targets, labels)
    if kind == "host":
        print(f"this machine is known as: {host_instance(world.config)}")
        return
    if kind == "service":
        print(f"known services: {', '.join(sorted(world.services)) or 'none'}")
        return
    print(f"known GPUs: {', '.join(sorted(_known(world))) or 'none'}")


def _known(world: World) -> set[str]:
    known = set(known_gpus(world))
    if world.config.gpus.inventory == "auto":
        with contextlib.suppress(NoEvidence):
            known |= {reading.uuid for reading in world.gpus.all() if reading.uuid}
    return known


def _meant(world: World, uuid: str) -> str:
    """The card that `uuid` names, whole or by its beginning; as it stands where none is known.

    Raises:
        ConfigError: several begin so.
    """
    known = _known(world)
    found = sorted(card for card in known if card.startswith(uuid))
    if uuid in known or not found:
        return uuid
    if len(found) > 1:
        raise ConfigError(f"several GPUs begin with {uuid}: {', '.join(found)}")
    return found[0]
