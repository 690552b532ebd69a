"""Arguments and dispatch. Every flag has an environment variable GPU_REMEDIATOR_…."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from remediator import __version__, log
from remediator.app import run as run_server
from remediator.cli import inspect, operate, reach
from remediator.cli.check import check
from remediator.cli.check_config import check_config
from remediator.cli.plan import plan
from remediator.clock import SystemClock
from remediator.config import Config, WebConfig, load
from remediator.durations import parse_moment
from remediator.errors import ConfigError, RemediatorError
from remediator.helper.command import add_arguments as add_helper_arguments

_PREFIX = "GPU_REMEDIATOR_"
_MODES = ("observe", "approve", "auto")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when not, 2 for a wrong call."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "helper":
        _become_the_helper(sys.argv[1:] if argv is None else argv)
    # argparse does not check a default against the choices, and ours may come from outside.
    for name, choices in (("log_level", log.LEVELS), ("log_format", log.FORMATS)):
        if getattr(arguments, name) not in choices:
            parser.error(f"{_PREFIX}{name.upper()} must be one of {', '.join(choices)}")
    log.configure(arguments.log_level, arguments.log_format)
    try:
        status = _dispatch(arguments)
        # Here, not at the interpreter's end, where a closed pipe could not be caught.
        sys.stdout.flush()
    except RemediatorError as error:
        print(f"gpu-remediator: {log.printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _become_the_helper(argv: Sequence[str]) -> None:
    """It runs as root: nothing stays loaded that only the other commands need."""
    words = argv[list(argv).index("helper") + 1 :]
    program = [sys.executable, "-P", "-m", "remediator.helper"]
    os.execv(program[0], [*program, *words])  # noqa: S606 - an argv list


def _load(arguments: argparse.Namespace) -> Config:
    return load(Path(arguments.config_file), arguments.listen_address)


def _dispatch(arguments: argparse.Namespace) -> int:
    if hasattr(arguments, "token_file"):
        return _operate(arguments, *_reached(arguments))
    config = _load(arguments)
    match arguments.command:
        case "serve":
            return run_server(config, lambda: _load(arguments))
        case "check-config":
            return check_config(config)
        case "check":
            return check(config)
        case "runs":
            return inspect.runs(config, arguments.run, arguments.limit)
        case "audit":
            return inspect.audit(config, arguments)
        case _:
            return plan(config, arguments)


def _reached(arguments: argparse.Namespace) -> tuple[WebConfig, Config | None]:
    """Where the server is and what to show it; the configuration only where it can be used."""
    token_file = Path(arguments.token_file) if arguments.token_file else None
    try:
        config = _load(arguments)
    except ConfigError as error:
        web, warning = reach.without_configuration(
            Path(arguments.config_file), error, arguments.listen_address, token_file
        )
        print(f"gpu-remediator: warning: {log.printable(warning)}", file=sys.stderr)
        return web, None
    return reach.with_token_file(config.web, token_file), config


def _operate(arguments: argparse.Namespace, web: WebConfig, config: Config | None) -> int:
    match arguments.command:
        case "undo":
            return operate.undo(
                web, config, arguments.uuid, everything=arguments.all, forgets=arguments.forget
            )
        case "approve":
            return operate.approve(web, arguments.run, arguments.token)
        case "deny":
            return operate.deny(web, arguments.run)
        case "acknowledge":
            return operate.acknowledge(web, arguments.incident)
        case "hold":
            return operate.hold(web, arguments.service, arguments.why)
        case "release":
            return operate.release(web, arguments.service)
        case "reload":
            return operate.reload(web)
        case "pause":
            return operate.pause(web, arguments.why)
        case _:
            return operate.resume(web)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        default=os.environ.get(_PREFIX + "CONFIG_FILE", "remediator.yml"),
        help="configuration (default %(default)s)",
    )
    common.add_argument(
        "--web.listen-address",
        dest="listen_address",
        metavar="HOST:PORT",
        default=os.environ.get(_PREFIX + "WEB_LISTEN_ADDRESS"),
        help="overrides web.listen_address",
    )
    common.add_argument(
        "--log.level",
        dest="log_level",
        choices=log.LEVELS,
        default=os.environ.get(_PREFIX + "LOG_LEVEL", "info"),
    )
    common.add_argument(
        "--log.format",
        dest="log_format",
        choices=log.FORMATS,
        default=os.environ.get(_PREFIX + "LOG_FORMAT", "text"),
    )
    parser = argparse.ArgumentParser(
        prog="gpu-remediator",
        description="Takes alerts, reads the world again, acts within its gates, verifies, undoes.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    def operating(name: str, text: str) -> argparse.ArgumentParser:
        made = command(name, text)
        made.add_argument(
            reach.TOKEN_FLAG,
            dest="token_file",
            metavar="FILE",
            default=os.environ.get(_PREFIX + "WEB_OPERATE_TOKEN_FILE", ""),
            help="in place of web.tokens.operate, also where the configuration cannot be used",
        )
        return made

    command("serve", "run the remediator")
    command("check-config", "check the configuration and print what may be done to what")
    command("check", "how the GPUs, services and recoveries are")
    runs = command("runs", "list runs, or show one with its steps")
    runs.add_argument("run", nargs="?", type=_number, metavar="RUN")
    runs.add_argument("--limit", type=_number, default=20)
    _audit_arguments(command("audit", "verify, show or export the audit trail"))
    planning = command("plan", "what would be done about an alert; does nothing")
    source = planning.add_mutually_exclusive_group(required=True)
    source.add_argument("--alert", metavar="NAME", help="the name of the alert")
    source.add_argument("--file", metavar="FILE", help="a webhook payload of Alertmanager")
    source.add_argument(
        "--replay", metavar="FILE", help="a recorded day: what would have been done"
    )
    planning.add_argument("--mode", choices=_MODES, help="for --replay, in place of the configured")
    planning.add_argument(
        "--uuid", default="", help="the GPU the alert names; its beginning is enough"
    )
    planning.add_argument("--service", default="", help="the service the alert names")
    undo = operating("undo", "restore what was changed, as soon as the card is seen cool")
    undo.add_argument("uuid", nargs="?", metavar="UUID")
    undo.add_argument("--all", action="store_true", help="every card")
    undo.add_argument(
        "--forget",
        action="store_true",
        help="the card was removed for good: end its undo without writing anything",
    )
    approving = operating("approve", "let a waiting run begin")
    approving.add_argument("run", type=_number, metavar="RUN")
    approving.add_argument(
        "--token",
        default="",
        help="of the plan that `runs RUN` shows; without it, whatever it is now",
    )
    operating("deny", "end a waiting run").add_argument("run", type=_number, metavar="RUN")
    acknowledge = operating("acknowledge", "close an incident that needed a person")
    acknowledge.add_argument("incident", type=_number, metavar="INCIDENT")
    operating("pause", "stop every new action; undo goes on").add_argument(
        "why", nargs="?", default=""
    )
    holding = operating(
        "hold", "a service is down on purpose: do not start it, do not call it down"
    )
    holding.add_argument("service", metavar="SERVICE")
    holding.add_argument("why", nargs="?", default="")
    operating("release", "end a hold: the service should be up again").add_argument(
        "service", metavar="SERVICE"
    )
    operating("reload", "have the server read its configuration again")
    operating("resume", "end a pause and close the breaker")
    text = "do, as root and for one user, what needs root"
    add_helper_arguments(commands.add_parser("helper", help=text, description=text))
    return parser


def _number(text: str) -> int:
    """A number from 1 on that fits the database."""
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["verify", "tail", "export"])
    parser.add_argument("--limit", type=_number, default=20, help="how many records tail shows")
    parser.add_argument("--format", choices=["jsonl", "csv"], default="jsonl", help="of an export")
    parser.add_argument("--run", type=_number, metavar="RUN", help="only of this run")
    parser.add_argument("--gpu", default="", metavar="UUID", help="only about this card")
    parser.add_argument("--service", default="", metavar="NAME", help="only about this service")
    parser.add_argument("--alert", default="", metavar="NAME", help="only of this alert")
    for name, which in (("--since", "from"), ("--until", "up to")):
        parser.add_argument(
            name, type=_moment, metavar="WHEN", help=f"only {which} then: 2h (ago), or a date"
        )
    parser.add_argument(
        "--head",
        type=_head,
        metavar="SEQ:MAC",
        help="verify: a head that was seen elsewhere; of the mac its first digits are enough",
    )
    parser.add_argument(
        "--without-anchor",
        action="store_true",
        help="verify: 0 also where no anchor proves the end of the chain",
    )
    parser.add_argument(
        "--without-segments",
        action="store_true",
        help="verify: only what is in the database, from the last checkpoint on",
    )


def _moment(text: str) -> float:
    """Unix seconds of a moment that a person wrote."""
    try:
        return parse_moment(text, SystemClock().now())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _head(text: str) -> tuple[int, str]:
    """Number of a record and the first digits of its mac."""
    seq, _, mac = text.partition(":")
    if len(mac) < 8 or set(mac) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("write SEQ:MAC, with 8 or more of the mac's digits")
    return _number(seq), mac


if __name__ == "__main__":
    sys.exit(main())
