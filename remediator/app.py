"""Puts the parts together: configuration in, a running remediator out."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask

from remediator import (
    alertmanager_client,
    exporter_access,
    exporter_release,
    gpu_control,
    gpu_reset,
    managers,
    metrics,
    services,
)
from remediator.clock import Clock, SystemClock
from remediator.config import Config, ServiceConfig
from remediator.config.secrets import read_or_create_key
from remediator.config.windows import check_playbooks
from remediator.counters import Counters
from remediator.degraded import with_degraded
from remediator.engine.evaluator import Evaluator
from remediator.engine.executor import Executor
from remediator.engine.first_request_watch import FirstRequestWatch
from remediator.engine.footprint_watch import FootprintWatch
from remediator.engine.leases import LeaseKeeper
from remediator.engine.log_watch import LogWatch
from remediator.engine.oom_watch import OutOfMemoryWatch
from remediator.engine.power_watch import PowerWatch
from remediator.engine.prober import Prober
from remediator.engine.progress_watch import ProgressWatch
from remediator.engine.worker import Worker
from remediator.errors import ConfigError, StorageError
from remediator.exporter_client import ExporterClient
from remediator.gate_metrics import GateCollector
from remediator.intake import Intake
from remediator.playbooks import Playbooks
from remediator.playbooks import load as load_playbooks
from remediator.preflight import concerns
from remediator.reconcile import Reconciler
from remediator.reconcile_metrics import ReconcileCollector
from remediator.reload import Reloader, ReloadState, no_reload
from remediator.service_metrics import ServiceCollector
from remediator.store import Store
from remediator.store.emergency import folder_for
from remediator.store.state_lock import StateLock
from remediator.store.store import DATABASE
from remediator.store.transaction import Trail
from remediator.web.alerts import Refusals
from remediator.web.app import Deps, create_app
from remediator.web.auth import Identities, load_identities
from remediator.web.config_metrics import WebConfigCollector
from remediator.web.server import listen
from remediator.world import Service, World
from serving.server import serve

log = logging.getLogger(__name__)

_STUCK_AFTER = 30.0


def has_database(config: Config) -> bool:
    """Whether `serve` has ever run with this state directory.

    Raises:
        StorageError: it cannot be looked at.
    """
    return _is_there(config.state_dir / DATABASE)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageError(f"cannot look at {path}: {error.strerror}") from None
    return True


def open_store(config: Config, clock: Clock, *, read_only: bool = False) -> Store:
    """The store that the configuration names.

    Raises:
        ConfigError: the audit key cannot be used.
        StorageError: the database cannot be opened.
    """
    path = config.audit_key_file
    if has_database(config) and not _is_there(path):
        raise ConfigError(
            f"the audit key {path} is gone, but the database in {config.state_dir} was written "
            "with it: put the key back, or move that directory away to begin anew"
        )
    key = read_or_create_key(path)
    return Store(config.state_dir, key, clock, read_only=read_only, trail=_trail(config))


def _trail(config: Config) -> Trail:
    """What there is of the audit beside the database.

    Raises:
        ConfigError: an old key is gone or cannot be used.
    """
    beside, audit = Trail.beside(config.state_dir), config.audit
    for file in audit.old_key_files:
        if not _is_there(file):
            raise ConfigError(f"audit.old_key_files: {file} is not there")
    return Trail(
        anchor=audit.anchor_file or beside.anchor,
        segments=audit.segment_dir or beside.segments,
        old_keys=tuple(read_or_create_key(file) for file in audit.old_key_files),
        emergency=audit.emergency_dir or folder_for(config.state_dir),
    )


def build_world(config: Config, store: Store, clock: Clock) -> World:
    """Drivers, managers and controls of the configuration; nothing is started or asked.

    Raises:
        ConfigError: a service's driver or manager is wrong.
    """
    return World(
        config=config,
        clock=clock,
        store=store,
        gpus=ExporterClient(
            config.exporter.url, config.exporter.timeout, exporter_access.create(config.exporter)
        ),
        control=gpu_control.create(config.gpus),
        services={one.name: _service(one, config, store, clock) for one in config.services},
        stopping=threading.Event(),
        card_reset=gpu_reset.create(config.gpus),
        release=exporter_release.create(config.exporter),
    )


def _service(raw: ServiceConfig, config: Config, store: Store, clock: Clock) -> Service:
    def load() -> Any:
        with store.reading() as tx:
            return tx.inventory.service(raw.name).process

    def save(identity: Any) -> None:
        if store.read_only:
            # Whoever only looks leaves it to the server to remember whom it saw.
            return
        try:
            with store.transaction() as tx:
                tx.inventory.remember_process(raw.name, identity)
        except StorageError as error:
            # It is found again by its command; a stop for heat must not fail over this.
            log.warning("the process of %s is not remembered: %s", raw.name, error)

    context = managers.Context(clock, load, save)
    return Service(
        config=raw,
        driver=services.create(raw, config.timing),
        manager=with_degraded(raw, managers.create(raw.manager, raw.name, context), store, clock),
    )


@dataclass(frozen=True)
class Remediator:
    """A wired remediator that is not started yet."""

    world: World
    playbooks: Playbooks
    counters: Counters
    intake: Intake
    worker: Worker
    prober: Prober
    logs: LogWatch
    leases: LeaseKeeper
    evaluator: Evaluator
    reconciler: Reconciler


def build(config: Config, clock: Clock, store: Store) -> Remediator:
    """Every part, wired.

    Raises:
        ConfigError: a playbook or service is wrong.
    """
    world = build_world(config, store, clock)
    books = load_playbooks(config.playbooks)
    check_playbooks(config.windows, tuple(books.by_name))
    counters = Counters()
    evaluator = Evaluator(world, books, counters)
    executor = Executor(world, books, counters)
    leases = LeaseKeeper(world, counters)
    watchers = (ProgressWatch(world), FootprintWatch(world), OutOfMemoryWatch(world))
    prober = Prober(world, (*watchers, PowerWatch(world), FirstRequestWatch(world)))
    intake = Intake(store, clock, counters, known_alerts=books.by_alert)
    logs = LogWatch(world, counters)
    worker = Worker(world, evaluator, executor, leases, prober, counters, logs)
    return Remediator(
        world=world,
        playbooks=books,
        counters=counters,
        intake=intake,
        worker=worker,
        prober=prober,
        logs=logs,
        leases=leases,
        evaluator=evaluator,
        reconciler=Reconciler(
            alertmanager_client.create(config.alertmanager),
            config.alertmanager.receiver,
            config.alertmanager.interval,
            intake=intake,
            store=store,
            clock=clock,
            counters=counters,
            nudge=worker.nudge,
        ),
    )


def web_application(
    remediator: Remediator,
    identities: Identities,
    reload: Callable[[str], list[str]] = no_reload,
    reloads: ReloadState | None = None,
) -> Flask:
    """The HTTP side over the parts; starts nothing."""
    collector = metrics.RemediatorCollector(
        remediator.world,
        remediator.playbooks,
        remediator.counters,
        remediator.intake,
        remediator.prober,
        remediator.worker.stalled_seconds,
    )
    registry = metrics.registry_for(collector)
    registry.register(ServiceCollector(remediator.world, remediator.counters, remediator.logs))
    registry.register(ReconcileCollector(remediator.reconciler, remediator.counters))
    registry.register(WebConfigCollector(identities.live))
    clock = remediator.world.clock
    registry.register(GateCollector(remediator.world, reloads or ReloadState(True, clock.now())))
    deps = Deps(
        world=remediator.world,
        playbooks=remediator.playbooks,
        intake=remediator.intake,
        prober=remediator.prober,
        registry=registry,
        health=partial(_health, remediator),
        readiness=partial(_readiness, remediator),
        nudge=remediator.worker.nudge,
        told=remediator.worker.emergency.told,
        ask_alertmanager=remediator.reconciler.ask_soon,
        reload=reload,
    )
    app = create_app(deps, identities)
    app.extensions["refusals"] = Refusals(remediator.counters, remediator.world.clock)
    return app


def prepare(
    remediator: Remediator, app: Flask, identities: Identities, new: Config
) -> Callable[[], None]:
    """Check and build all that `new` asks for; what is returned puts it in force.

    Raises:
        ConfigError: something in it cannot work.
    """
    world, store, clock = remediator.world, remediator.world.store, remediator.world.clock
    books = load_playbooks(new.playbooks)
    check_playbooks(new.windows, tuple(books.by_name))
    fresh = load_identities(new.web)
    known = Identities(fresh.tokens, new.web.roles, identities.live)
    built = _keep_unchanged(world, build_world(new, store, clock))

    def put_in_force() -> None:
        world.adopt(built)
        remediator.playbooks.adopt(books)
        remediator.intake.know(books.by_alert)
        metrics.make_known(remediator.counters, books)
        app.extensions["identities"] = known
        remediator.worker.watch_services()
        remediator.worker.nudge()

    return put_in_force


def _keep_unchanged(old: World, new: World) -> World:
    """`new`, with the parts of `old` whose configuration is the same: they know things by now."""
    services = {
        name: old.services[name]
        if name in old.services
        and old.services[name].config == service.config
        and old.config.timing == new.config.timing
        else service
        for name, service in new.services.items()
    }
    kept: dict[str, Any] = {"services": services}
    if old.config.gpus == new.config.gpus:
        kept |= {"control": old.control, "card_reset": old.card_reset}
    if old.config.exporter == new.config.exporter:
        kept |= {"gpus": old.gpus, "release": old.release}
    return replace(new, **kept)


def run(config: Config, read_again: Callable[[], Config] | None = None) -> int:
    """`gpu-remediator serve`: until SIGTERM or SIGINT; the exit status.

    On SIGHUP and `POST /-/reload` the configuration is what `read_again` returns.

    Raises:
        ConfigError: something in the configuration cannot work.
        StorageError: the state directory cannot be used.
    """
    clock = SystemClock()
    identities = load_identities(config.web)
    with contextlib.ExitStack() as stack:
        lock = StateLock(config.state_dir)
        if not lock.acquire():
            raise ConfigError(f"another gpu-remediator uses {config.state_dir}; only one may")
        stack.callback(lock.release)
        store = open_store(config, clock)
        stack.callback(store.close)
        remediator = build(config, clock, store)
        reloads = ReloadState(True, clock.now())
        reloader: Reloader | None = None

        def reload(by: str) -> list[str]:
            return no_reload(by) if reloader is None else reloader.reload(by)

        app = web_application(remediator, identities, reload, reloads)
        if read_again is not None:
            ready = partial(prepare, remediator, app, identities)
            reloader = Reloader(config, read_again, ready, store, reloads, clock.now)
            reloader.listen_for_hangups(remediator.world.stopping)
        server = listen(app, config.web, identities.live, app.extensions["refusals"].too_large)
        try:
            serve(server, partial(_begin, remediator))
        finally:
            log.info("stopping: running steps are ended first")
            remediator.reconciler.stop()
            remediator.worker.stop()
    return 0


def _begin(remediator: Remediator) -> None:
    remediator.worker.start()
    remediator.reconciler.start()
    log.info("mode=%s", remediator.world.config.mode)
    for concern in concerns(remediator.world, remediator.playbooks):
        log.warning("%s", concern)


def _health(remediator: Remediator) -> str | None:
    silent = remediator.worker.stalled_seconds()
    return f"the worker has not moved for {silent:.0f} s" if silent > _STUCK_AFTER else None


def _readiness(remediator: Remediator) -> str | None:
    if remediator.world.stopping.is_set():
        return "shutting down"
    try:
        with remediator.world.store.transaction() as tx:
            # A new value each time: SQLite does not write a row that would stay as it is.
            tx.set_meta("ready_probe", str(remediator.world.clock.now()))
    except StorageError as error:
        return str(error)
    return _health(remediator)
