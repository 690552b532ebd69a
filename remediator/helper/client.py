"""Asks the helper. What it did not take in changed nothing; what it took in and did not answer may have."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remediator.clock import Clock, SystemClock
from remediator.errors import ControlError, OutcomeUnknown
from remediator.helper.protocol import (
    MAX_REPLY,
    TURN,
    UUID,
    VERBS,
    RequestError,
    encode_request,
    parse_greeting,
    parse_reply,
)
from remediator.log import printable

log = logging.getLogger(__name__)

DEFAULT_SOCKET = Path("/run/gpu-remediator/helper.sock")
# The helper asks for the card's state before it writes, and may wait for its turn.
_CALLS = 2
_LONGEST_MARGIN = 45.0


class Helper:
    """The helper that listens on a Unix socket."""

    def __init__(self, path: Path | None, timeout: float, clock: Clock | None = None) -> None:
        """`timeout` in seconds for one call that it makes to the driver."""
        self.path = path or DEFAULT_SOCKET
        self.timeout = timeout
        self._clock = clock or SystemClock()

    def about(self) -> Mapping[str, Any]:
        """What it may do: `allow`, `cards`, `control`.

        Raises:
            ControlError: it cannot be asked; the message says why.
        """
        return self._ask("about", {}, 0.0)

    def ask(
        self, verb: str, uuid: str, number: int | None = None, *, within: float = 0.0
    ) -> Mapping[str, Any]:
        """The value that it answers.

        Args:
            verb: What is asked for.
            uuid: The card.
            number: The verb's number, where it has one.
            within: Seconds that the verb may take beside the calls around it.

        Raises:
            ControlError: it was refused or could not be asked; nothing was changed.
            OutcomeUnknown: it is not known what a verb that writes did.
        """
        if not UUID.fullmatch(uuid):
            raise ControlError(f"{uuid!r} is not a GPU uuid")
        name = VERBS[verb].number
        more: dict[str, int] = {} if name is None or number is None else {name: number}
        return self._ask(verb, {"uuid": uuid, **more}, within)

    def _ask(self, verb: str, fields: Mapping[str, str | int], within: float) -> Mapping[str, Any]:
        margin = min(_CALLS * self.timeout + TURN + 1.0, self.timeout + _LONGEST_MARGIN)
        deadline = self._clock.monotonic() + within + margin
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.settimeout(self.timeout)
                connection.connect(str(self.path))
                parse_greeting(self._line(connection, self._clock.monotonic() + self.timeout))
            except (OSError, RequestError) as error:
                raise ControlError(f"the helper at {self.path}: {_why(error)}") from None
            try:
                connection.sendall(encode_request(verb, fields))
                reply = parse_reply(self._line(connection, deadline))
            except (OSError, RequestError) as error:
                sentence = f"the helper at {self.path} did not answer: {_why(error)}"
                kind = OutcomeUnknown if VERBS[verb].writes else ControlError
                raise kind(sentence) from None
        if reply.earlier is not None:
            told = printable(str(dict(reply.earlier)))
            log.warning("the helper tells what became of an earlier call: %s", told)
        if reply.outcome == "done":
            return reply.value
        said = f"the helper: {reply.said}"
        raise OutcomeUnknown(said) if reply.outcome == "unknown" else ControlError(said)

    def _line(self, connection: socket.socket, deadline: float) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise TimeoutError("it did not answer in time")
            connection.settimeout(left)
            part = connection.recv(MAX_REPLY)
            if not part:
                raise RequestError("it ended before it answered")
            found += part
            if len(found) > MAX_REPLY:
                raise RequestError("that is no answer of the helper")
        return found


def _why(error: OSError | RequestError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket: install gpu-remediator-helper.socket (docs/deployment.md)"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens: systemctl start gpu-remediator-helper.socket"
    if isinstance(error, PermissionError):
        return "this user may not connect: it is for the user of gpu-remediator.service"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
