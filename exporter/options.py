"""Flags and their environment variables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from exporter import __version__, logs
from exporter.backends import registry
from exporter.errors import ConfigError
from exporter.service_options import ServiceOptions
from serving.address import parse_address
from serving.errors import ConfigError as AddressError

_PREFIX = "GPU_EXPORTER_"
_PROCFS = "/proc"
_KMSG = "/dev/kmsg"


class Flags(argparse.Namespace):
    """The parsed command line."""

    command: str
    inventory_command: str
    listen_address: str
    telemetry_path: str
    release_token_file: Path | None
    web_config_file: Path | None
    config_file: Path | None
    backend: str
    simulator_url: str
    sample_interval: float
    storage_path: Path | None
    procfs: Path
    container_socket: Path | None
    kmsg: str
    log_level: str
    log_format: str
    json: bool
    file: Path
    passes: int
    anonymise: bool

    def service_options(self) -> ServiceOptions:
        """Return what the service wants to know."""
        return ServiceOptions(
            backend=self.backend,
            simulator_url=self.simulator_url,
            sample_interval=self.sample_interval,
            storage_path=self.storage_path,
            procfs=self.procfs,
            container_socket=self.container_socket,
            # A command that looks once has no use for what comes.
            kmsg=Path(self.kmsg) if self.kmsg and self.command == "serve" else None,
        )


def parse(arguments: Sequence[str] | None, environ: Mapping[str, str] | None = None) -> Flags:
    """Parse the command line; an environment variable stands where a flag is not given.

    Raises:
        ConfigError: a value is not usable.
        SystemExit: the command line is not, or help was asked for.
    """
    flags = read(arguments, environ)
    check(flags)
    return flags


def read(arguments: Sequence[str] | None, environ: Mapping[str, str] | None = None) -> Flags:
    """Read the command line alone: nothing is opened, and `check` is still to be asked.

    Raises:
        SystemExit: the command line is not usable, or help was asked for.
    """
    return _parser(os.environ if environ is None else environ).parse_args(arguments, Flags())


def check(flags: Flags) -> None:
    """Look whether the values can be used; `--backend=auto` loads the driver's library.

    Raises:
        ConfigError: one cannot.
    """
    try:
        parse_address(flags.listen_address)
    except AddressError as error:
        raise ConfigError(f"--web.listen-address: {error}") from error
    if not flags.telemetry_path.startswith("/") or flags.telemetry_path == "/":
        raise ConfigError(f"--web.telemetry-path must be below /, not '{flags.telemetry_path}'")
    for flag, value, known in (
        ("--log.level", flags.log_level, logs.LEVELS),
        ("--log.format", flags.log_format, logs.FORMATS),
    ):
        if value not in known:
            raise ConfigError(f"{flag}: choose from {', '.join(known)}, not '{value}'")
    if flags.procfs != Path(_PROCFS) and not flags.procfs.is_dir():
        raise ConfigError(f"--path.procfs: {flags.procfs} is no directory; mount the host's /proc")
    registry.resolve(flags.backend)


def variable(flag: str) -> str:
    """Name the environment variable of a flag."""
    return _PREFIX + flag.lstrip("-").replace(".", "_").replace("-", "_").upper()


def _common(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)

    def add(flag: str, default: str | None, text: str, **more: object) -> None:
        name = variable(flag)
        # A string default goes through `type` as if it had been typed.
        value = environ.get(name, default)
        bare = flag.lstrip("-").removeprefix("web.").removeprefix("path.")
        more.setdefault("dest", bare.replace(".", "_").replace("-", "_"))
        common.add_argument(
            flag,
            default=value,
            help=f"{text} [{name}]",
            **more,  # type: ignore[arg-type]
        )

    _add_web(add)
    add("--config.file", None, "thresholds and intervals, YAML", type=Path, metavar="FILE")
    names = "|".join(("auto", *registry.names()))
    names = names.replace("replay", "replay:FILE")
    add("--backend", "auto", f"{names}; auto never chooses replay or simulated")
    add("--simulator.url", "http://127.0.0.1:9950", "for --backend=simulated")
    add("--sample-interval", "1", "seconds between readings", type=_seconds, metavar="SECONDS")
    add("--storage.path", None, "directory that remembers the GPUs", type=Path, metavar="DIR")
    add(
        "--path.procfs",
        _PROCFS,
        "where the host's memory and processes are read",
        type=Path,
        metavar="DIR",
    )
    add(
        "--path.kmsg",
        _KMSG,
        "the kernel log, read for Xid errors and OOM kills; empty: not",
        metavar="FILE",
    )
    add(
        "--container.socket",
        None,
        "of Docker or Podman, to be asked for the names of containers",
        type=Path,
        metavar="SOCKET",
    )
    add("--log.level", "info", "|".join(logs.LEVELS))
    add("--log.format", "text", "|".join(logs.FORMATS))

    return common


def _add_web(add: Callable[..., None]) -> None:
    add("--web.listen-address", ":9940", "HOST:PORT to serve on; no host: all interfaces")
    add("--web.telemetry-path", "/metrics", "where the metrics are")
    add(
        "--web.release-token-file",
        None,
        "bearer token of POST /-/release; without it there is none",
        type=Path,
        metavar="FILE",
    )
    add(
        "--web.config.file",
        None,
        "TLS, client certificates and passwords, as exporter-toolkit has them",
        dest="web_config_file",
        type=Path,
        metavar="FILE",
    )


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    common = _common(environ)
    parser = argparse.ArgumentParser(
        prog="gpu-exporter", description="Prometheus exporter for GPUs. It only reads."
    )
    parser.add_argument("--version", action="version", version=f"gpu-exporter {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", parents=[common], help="serve metrics over HTTP")
    dump = commands.add_parser("dump", parents=[common], help="collect once and print")
    dump.add_argument("--json", action="store_true", help="JSON instead of metrics")
    commands.add_parser("check", parents=[common], help="the health of every GPU; exit 0, 1 or 2")
    commands.add_parser("doctor", parents=[common], help="why is there no GPU here?")
    capture = commands.add_parser(
        "capture", parents=[common], help="record what the NVIDIA driver answers"
    )
    capture.add_argument("file", type=Path, metavar="FILE", help="- for standard output")
    capture.add_argument(
        "--passes", type=_passes, default=3, metavar="N", help="how often each GPU is read"
    )
    capture.add_argument(
        "--anonymise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make uuids and serial numbers up (default: yes)",
    )
    inventory = commands.add_parser("inventory", help="the GPUs that are expected")
    actions = inventory.add_subparsers(dest="inventory_command", required=True, metavar="ACTION")
    actions.add_parser("reset", parents=[common], help="forget GPUs that are gone on purpose")
    return parser


def _passes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"a number from 1 to 10000, not '{text}'")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 60:
        raise argparse.ArgumentTypeError(f"seconds from 0.1 to 60, not '{text}'")
    return value
