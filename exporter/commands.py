"""What each command of `gpu-exporter` does that looks once."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from exporter import api, check, config, doctor, inventory
from exporter.attribution import processes_root
from exporter.backends import registry
from exporter.clock import SystemClock
from exporter.environment import Environment
from exporter.errors import CaptureError, ConfigError
from exporter.host import HostReading
from exporter.options import Flags
from exporter.service import Service
from exporter.snapshot import Snapshot

# Opening a driver without persistence mode takes seconds.
_FIRST_CYCLE_SECONDS = 20.0


def run(flags: Flags) -> int:
    """Run a command, and return its exit code.

    Raises:
        ExporterError, ServingError: it cannot be done.
    """
    return _COMMANDS[flags.command](flags)


def _dump(flags: Flags) -> int:
    service = Service(config.load(flags.config_file), flags.service_options())
    with _collected(service) as snapshot:
        if flags.json:
            body = api.everything(snapshot, _host(service))
            print(json.dumps(body, indent=2, ensure_ascii=False))
        else:
            print(service.page.render()[0].decode(), end="")
    if not snapshot.gpus:
        why = snapshot.backend.message or snapshot.not_ready or "the driver lists none"
        print(f"gpu-exporter: no GPU: {why}", file=sys.stderr)
    return 0 if snapshot.gpus else 1


def _check(flags: Flags) -> int:
    service = Service(config.load(flags.config_file), flags.service_options())
    with _collected(service) as snapshot:
        text, code = check.report(snapshot, _host(service))
    print(text)
    return code


def _host(service: Service) -> HostReading | None:
    return None if service.read_host is None else service.read_host()


def _doctor(flags: Flags) -> int:
    # Their GPUs are not this machine's.
    found: list[doctor.Finding] = []
    if registry.of_this_machine(flags.backend.partition(":")[0]):
        kmsg = Path(flags.kmsg) if flags.kmsg else None
        found.extend(doctor.findings(Environment()))
        found.extend(doctor.notes(processes_root(flags.procfs), kmsg, flags.container_socket))
    service = Service(config.load(flags.config_file), flags.service_options())
    with _collected(service) as snapshot:
        found.extend(doctor.outcome(snapshot))
    text, code = doctor.render(found)
    print(text)
    return code


def _capture(flags: Flags) -> int:
    # The library's module is big, and a parent that serves must not carry it.
    capture = importlib.import_module("exporter.capture.command")
    settings = capture.CaptureOptions(flags.passes, flags.sample_interval, flags.anonymise)
    name = "standard output" if flags.file == Path("-") else str(flags.file)
    try:
        with _opened(flags.file) as out:
            done = capture.Session(out, settings, SystemClock()).run()
    except OSError as error:
        raise CaptureError(f"cannot write to {name}: {error.strerror}") from error
    if not done.answers:
        if flags.file.is_file():
            flags.file.unlink()
        print(f"gpu-exporter: nothing was captured: {done.problem}", file=sys.stderr)
        return 1
    disguise = "uuids, serial numbers and pids" if flags.anonymise else "pids"
    print(f"{done.gpus} GPUs, {done.answers} answers in {name}; {disguise} are made up",
          file=sys.stderr)  # fmt: skip
    if done.problem:
        print(f"gpu-exporter: no GPU was captured: {done.problem}", file=sys.stderr)
    return 0 if done.gpus else 1


def _opened(path: Path) -> contextlib.AbstractContextManager[TextIO]:
    if path == Path("-"):
        return contextlib.nullcontext(sys.stdout)
    return path.open("w", encoding="utf-8")


def _inventory(flags: Flags) -> int:
    if flags.storage_path is None:
        raise ConfigError("inventory reset: say with --storage.path where the inventory is")
    forgot = inventory.reset(flags.storage_path)
    print("forgotten; GPUs are learned anew" if forgot else "nothing was remembered")
    return 0


@contextlib.contextmanager
def _collected(service: Service) -> Iterator[Snapshot]:
    service.start()
    try:
        service.wait_for_first_cycle(_FIRST_CYCLE_SECONDS)
        yield service.store.snapshot()
    finally:
        service.stop()


_COMMANDS = {
    "dump": _dump,
    "check": _check,
    "doctor": _doctor,
    "capture": _capture,
    "inventory": _inventory,
}
