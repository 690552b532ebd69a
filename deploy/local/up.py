"""``make up``: starts the whole stack, says where it is, and tells what happens until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from deploy.local import binaries, demo, hardware, pages
from deploy.local.errors import StackError, Unreachable
from deploy.local.hardware import Hardware
from deploy.local.options import Options, Urls
from deploy.local.ports import Ports
from deploy.local.profile import SHIPPED
from deploy.local.run_folder import RunFolder
from deploy.local.settings import Settings
from deploy.local.stack import Stack
from deploy.local.story import Narrator, wants_colour
from deploy.local.supervisor import REPOSITORY

_TICK_SECONDS = 0.5
_INTERRUPTED = 130


class Interrupted(BaseException):
    """SIGINT or SIGTERM; no ``except Exception`` may swallow it."""


def up(settings: Settings) -> int:
    """Runs the stack until SIGINT or SIGTERM.

    Args:
        settings: What the person chose.

    Returns:
        0 when it was stopped after it was ready, 130 when it was interrupted before.

    Raises:
        StackError: It could not be started; the message says what to do.
        ToolMissing: Prometheus or Alertmanager cannot be had (of `deploy.local.binaries`).
    """
    _interrupt_on(signal.SIGINT, signal.SIGTERM)
    stack: Stack | None = None
    ready = False
    try:
        found = hardware.look()
        ports = _ports(settings, found)
        options = _options(settings, found, ports)
        ports.require_free(options.programs())
        _say(_what_runs(options, found))
        _say("Looking for Prometheus and Alertmanager (the first time they are downloaded) …")
        binaries.find()
        stack = Stack(_run_folder(options, ports), options, ports)
        _say("Starting …")
        stack.start()
        ready = True
        _say(_greeting(stack))
        _follow(stack, play=settings.incidents and options.simulates_gpus)
    except Interrupted:
        pass
    finally:
        if stack is not None:
            _stop(stack)
    return 0 if ready else _INTERRUPTED


def _ports(settings: Settings, found: Hardware) -> Ports:
    """Those of the person; a real LLM service is where it always is."""
    return replace(settings.ports, llm=Ports().llm) if found.gpus else settings.ports


def _options(settings: Settings, found: Hardware, ports: Ports) -> Options:
    urls = Urls.at(ports)
    asked: dict[str, object] = {"alertmanager": {"urls": [urls.alertmanager]}}
    if not found.gpus:
        return Options(gpus=settings.gpus, mode=settings.mode or "auto", remediator_settings=asked)
    models = hardware.served_models(urls.llm)
    return Options(
        backend="nvml",
        mode=settings.mode or "observe",
        # Restarting somebody's service is for the one who knows what runs it.
        allow=(),
        intervals=SHIPPED,
        llm_service="none" if models is None else "running",
        manager="process",
        models=models or (),
        remediator_settings=asked,
    )


def _run_folder(options: Options, ports: Ports) -> Path:
    """The run's folder; a simulated world begins anew, what is known of real cards is kept."""
    kind = "simulated" if options.simulates_gpus else "local"
    folder = REPOSITORY / ".run" / f"{kind}-{ports.exporter}"
    if options.simulates_gpus:
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def _what_runs(options: Options, found: Hardware) -> str:
    if options.simulates_gpus:
        return (
            f"There is no usable NVIDIA GPU here: {found.reason}.\n"
            f"So the GPUs are SIMULATED: {options.gpus} of them, with a simulated LLM service and "
            f"some load; heat moves {options.time_scale:g} times as fast as on a real card. "
            f"The remediator's mode is {options.mode}."
        )
    service = (
        f"the LLM service on this machine (models loaded: {', '.join(options.models) or 'none'})"
        if options.llm_service == "running"
        else "no LLM service (none answers on the Ollama port)"
    )
    hint = " Nothing is changed; MODE=auto lets it act." if options.mode == "observe" else ""
    return (
        f"Real GPUs: {', '.join(found.gpus)}; {service}. No incidents are played.\n"
        f"The remediator's mode is {options.mode}.{hint}"
    )


def _greeting(stack: Stack) -> str:
    shortened = [str(change) for change in stack.changes if change.kind == "interval"]
    urls = stack.urls
    lines = [
        "Ready.",
        f"  GPU exporter   {urls.exporter}/metrics",
        f"  Remediator     {urls.remediator}",
        f"  Prometheus     {pages.prometheus(urls)}",
        f"  Alertmanager   {pages.alertmanager(urls)}",
        f"  On-call        {stack.run.notifications_file} (what a person would be sent)",
        f"  Configuration  {stack.run.path}",
        f"  Logs           {stack.run.path / 'logs'}",
        f"  Command line   {cli(stack.run)}",
    ]
    if stack.options.llm_service != "none":
        lines.insert(3, f"  LLM service    {urls.llm}")
    if shortened:
        lines.append(f"Demo profile: shortened {', '.join(dict.fromkeys(shortened))}.")
    if stack.options.simulates_gpus:
        uuid = stack.simulated_gpus()[0]["uuid"]
        lines += [
            "Inject a fault yourself (heat, leak, hang, load, lose, …; DELETE clears all):",
            f"  curl -X POST {urls.simulator}/api/v1/faults "
            f'-d \'{{"fault": "heat", "gpu": "{uuid}", "celsius": 86}}\'',
            f"  curl -X DELETE {urls.simulator}/api/v1/faults",
        ]
    return "\n".join([*lines, "Ctrl-C stops all of it.", ""])


def cli(run: RunFolder, command: str = "runs") -> str:
    """The command that a person types in the checkout."""
    program = Path(sys.executable).with_name("gpu-remediator")
    file = os.path.relpath(run.remediator_file, REPOSITORY)
    return shlex.join([os.path.relpath(program, REPOSITORY), command, f"--config.file={file}"])


def _follow(stack: Stack, *, play: bool) -> None:
    narrator = Narrator(
        stack,
        _say,
        colour=wants_colour(os.environ, terminal=sys.stdout.isatty()),
        approve=cli(stack.run, "approve"),
    )
    script = demo.incidents(stack, narrator.narrate) if play else None
    while True:
        narrator.catch_up()
        if script is not None:
            try:
                next(script)
            except StopIteration:
                script = None
            except StackError as error:
                narrator.narrate(f"The incidents end here: {error}")
                script = None
        time.sleep(_TICK_SECONDS)


def _stop(stack: Stack) -> None:
    leases = None if stack.options.simulates_gpus else _leases(stack)
    _say("\nStopping …")
    try:
        stack.stop()
    except Interrupted:
        # The keeper goes on by itself: its lifeline is closed.
        _say("Not waiting for the last programs; they are being stopped.")
        return
    if leases:
        _say(
            f"{leases:g} change(s) of the remediator are still in place on the GPUs: "
            "`make up` again lets it undo them when the cards are cool."
        )
    _say("Stopped.")


def _leases(stack: Stack) -> float | None:
    try:
        return stack.metric("remediator", "remediator_undo_leases")
    except (Unreachable, ValueError):
        return None


def _interrupt_on(*numbers: signal.Signals) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    for number in numbers:
        signal.signal(number, interrupt)


def _say(text: str) -> None:
    print(text, flush=True)
