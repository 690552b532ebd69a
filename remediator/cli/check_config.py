"""`check-config`: what the configuration allows, without acting and without a running server."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from remediator.app import build_world
from remediator.clock import SystemClock
from remediator.config import Config
from remediator.config.model import Permission
from remediator.config.windows import check_playbooks
from remediator.engine.log_watch import log_of
from remediator.errors import ManagerError
from remediator.helper.client import DEFAULT_SOCKET
from remediator.managers.base import Replaces
from remediator.playbooks import Playbooks, Stage, stage_name
from remediator.playbooks import load as load_playbooks
from remediator.services import Capability
from remediator.web.auth import load_identities
from remediator.world import Service, World


def check_config(config: Config) -> int:
    """Check everything that can be checked without acting, and say what may be done to what."""
    if not load_identities(config.web).has_anybody("webhook"):
        print(
            "note: neither web.tokens.webhook nor web.roles.webhook is set: every delivery is "
            "refused with 401"
        )
    books = load_playbooks(config.playbooks)
    check_playbooks(config.windows, tuple(books.by_name))
    world = build_world(config, _NoStore(), SystemClock())  # type: ignore[arg-type]
    print(
        f"mode {config.mode}; allowed: {', '.join(config.allow) or 'nothing that interrupts a service'}"
    )
    ours = config.gpus.inventory
    cards = ours if ours == "auto" else ", ".join(ours) or "none"
    print(f"GPUs: {cards}, written by {config.gpus.control}")
    _print_helper(config)
    for service in world.services.values():
        gpus = service.config.gpus
        on = gpus if gpus == "all" else ", ".join(gpus) or "no GPU"
        print(
            f"service {service.name}: {service.config.driver} at {service.config.endpoint}, "
            f"{service.manager.kind} unit {service.manager.unit}, on {on}"
        )
        _print_log(service)
        _print_capabilities(service)
        for uuid in () if ours == "auto" or gpus == "all" else sorted(set(gpus) - set(ours)):
            print(f"note: gpus.inventory lacks {uuid}: alerts about it are ignored")
    _print_playbooks(config, books, world)
    print("the configuration is good")
    return 0


def _print_log(service: Service) -> None:
    """Whether what the server writes can be read: some run out of memory in users' requests alone."""
    found = log_of(service)
    if found is None:
        why = "its manager keeps none" if service.config.watch_log else "watch_log is false"
        print(f"  its log is not read: {why}")
        return
    try:
        found.read({}, SystemClock().now())
    except ManagerError as error:
        print(f"  note: its log ({found.where}) cannot be read: {error}")
    else:
        print(f"  its log is read: {found.where}")


def _print_capabilities(service: Service) -> None:
    """What can be had of this server as it is configured, and why not what cannot."""
    can = service.driver.capabilities
    for field in dataclasses.fields(can):
        one: Capability = getattr(can, field.name)
        print(f"  {field.name.replace('_', ' ') + ':':<13}{one.able:<8}{one.how}")
    both = "both, or one request" if isinstance(service.manager, Replaces) else "both"
    print(
        f"  {'stop, start:':<13}{'yes':<8}by its manager ({service.manager.kind}), "
        f"and a restart is {both}"
    )


def _print_helper(config: Config) -> None:
    gpus = config.gpus
    if gpus.control != "helper" and not (gpus.control == "jetson" and gpus.helper_socket):
        return
    socket = gpus.helper_socket or DEFAULT_SOCKET
    print(f"the helper listens on {socket}; what it may do its own helper.yml says")
    if not socket.is_socket():
        print(f"note: {socket} is not here: no card is written to until the helper is started")


def _print_playbooks(config: Config, books: Playbooks, world: World) -> None:
    print("playbooks:")
    for name, playbook in sorted(books.by_name.items()):
        mode = playbook.mode or config.mode
        steps = [s.kind for rung in playbook.rungs for s in rung.steps] or ["nothing but record"]
        print(f"  {name} [{mode}] for {', '.join(playbook.alerts)}: {' > '.join(steps)}")
        for number, rung in enumerate(playbook.rungs, start=1):
            missing = lacking(rung, config.allow)
            if missing:
                kinds = ", ".join(s.kind for s in rung.steps if s.permission in missing)
                print(f"    rung {number}: {kinds} is refused: allow lacks {', '.join(missing)}")
        for number, stage in playbook.stages.items():
            if number not in range(len(playbook.rungs)) and stage.steps:
                kinds = " > ".join(step.kind for step in stage.steps)
                print(f"    {stage_name(number)}: {kinds}")
        needs = {p for rung in playbook.rungs for p in rung.permissions}
        for service in world.services.values():
            if "service_restart" in needs and "service_restart" in config.allow:
                print(f"    may {service.manager.describe('restart')}")
            if "service_stop" in needs and "service_stop" in config.allow:
                print(f"    may {service.manager.describe('stop')}")
        if "gpu_reset" in needs and "gpu_reset" in config.allow:
            _print_resets(config, world)


def _print_resets(config: Config, world: World) -> None:
    if config.exporter.release_token_file is None:
        print("    every reset is refused: exporter.release_token_file is not set")
        return
    if config.gpus.inventory == "auto":
        print(
            f"    may reset any card that the exporter reports, one at a time, by {world.card_reset.name}"
        )
        return
    for uuid in config.gpus.inventory:
        print(f"    may {world.card_reset.describe(uuid)}")


def lacking(rung: Stage, allow: Sequence[Permission]) -> tuple[Permission, ...]:
    """The second keys that `rung` needs and `allow` does not give: without them it is refused."""
    return tuple(permission for permission in rung.permissions if permission not in allow)


class _NoStore:
    """Stands where nothing is known yet, and nothing is kept."""

    read_only = True

    @contextlib.contextmanager
    def reading(self) -> Iterator[_NoStore]:
        """Nothing."""
        yield self

    def get_meta(self, key: str) -> None:
        """Nothing."""
