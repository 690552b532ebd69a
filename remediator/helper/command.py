"""`gpu-remediator helper`, or `python -m remediator.helper`: starts the helper, as root."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from remediator import log as logs
from remediator.clock import SystemClock
from remediator.errors import ConfigError
from remediator.helper.desk import Desk
from remediator.helper.ledger import Ledger
from remediator.helper.policy import DEFAULT_FILE, Policy, load
from remediator.helper.server import Server

log = logging.getLogger(__name__)

_FIRST_PASSED = 3
_BACKLOG = 64
# systemd starts it again for the next call; what must outlast it is in its ledger.
_IDLE_EXIT = 300.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the helper."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="where to listen; without it, the socket that systemd hands over",
    )
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=Path,
        metavar="FILE",
        default=DEFAULT_FILE,
        help="what it may do (default %(default)s)",
    )
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where it notes what it has begun; without one it resets no card",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or idleness; the exit status."""
    parser = argparse.ArgumentParser(prog="gpu-remediator helper", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    logs.configure("info", "text")
    try:
        return serve(arguments.socket, arguments.config_file, arguments.state_dir)
    except ConfigError as error:
        sys.stderr.write(f"gpu-remediator helper: {logs.printable(str(error))}\n")
        return 1


def serve(path: Path | None, config_file: Path, state_dir: Path | None) -> int:
    """Serve on a socket of its own at `path`, or on the one that systemd has passed.

    Raises:
        ConfigError: there is no socket to listen on.
    """
    clock = SystemClock()
    desk: Desk | str
    uid = policy = None
    try:
        policy = load(config_file)
        uid = policy.uid
        desk = Desk(policy, Ledger(state_dir, clock), clock)
    except (ConfigError, OSError) as error:
        # Said to whoever asks: a unit that fails again and again is said to nobody.
        desk = f"the helper can do nothing: {error}"
        log.error("%s", desk)  # noqa: TRY400 - a sentence, no traceback
    with contextlib.ExitStack() as stack:
        listener = _passed() if path is None else _bind(path, uid)
        stack.enter_context(listener)
        if path is not None:
            stack.callback(path.unlink, missing_ok=True)
        server = Server(listener, desk, uid, clock, _IDLE_EXIT if path is None else None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        log.info("listening uid=%s %s", uid, _allowed(policy))
        server.run()
    log.info("ended")
    return 0


def _allowed(policy: Policy | None) -> str:
    if policy is None:
        return "allow=nothing"
    cards = policy.cards if policy.cards == "all" else ",".join(policy.cards)
    return f"allow={','.join(policy.allow) or 'nothing'} cards={cards}"


def _passed() -> socket.socket:
    """The socket that systemd passes (sd_listen_fds)."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    if pid != str(os.getpid()) or count != "1":
        raise ConfigError("no socket was passed: start it by its systemd socket, or give --socket")
    os.set_inheritable(_FIRST_PASSED, False)
    return socket.socket(fileno=_FIRST_PASSED)


def _bind(path: Path, uid: int | None) -> socket.socket:
    """A socket of our own, which only `uid` may connect to."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"{path} is there already, and it is no socket")
        if _answers(path):
            raise ConfigError(f"another helper listens on {path}")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        if uid is not None and uid != os.geteuid():
            # Never what a link leads to: whoever owns the folder could exchange the socket for one.
            os.chown(path, uid, -1, follow_symlinks=False)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        try:
            one.connect(str(path))
        except OSError:
            return False
    return True
