"""How a request is taken in: one at a time, and what is too long to its end without keeping it."""

from __future__ import annotations

from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import RequestEntityTooLarge

_MAX_DRAINED = 64 * 2**20


class RequestParser(HTTPRequestParser):  # type: ignore[misc]
    """Answers the first of requests that come in one piece, and closes the connection.

    waitress would answer all of them, and hold a thread while nobody reads the answers.

    A body that is too large is read to its end, and none of it is kept: to close a connection with
    unread bytes resets it, and the sender never sees the 413.
    """

    _left: int | None = None

    def received(self, data: bytes) -> int:
        """Take bytes of the request; returns how many of them belonged to it."""
        if self._left is not None:
            return self._drop(data)
        consumed: int = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge) and not self.chunked:
            self._left = min(self.content_length, _MAX_DRAINED)
            self.completed = False
        elif self.completed and not self.empty and consumed < len(data):
            self.headers["CONNECTION"] = "close"
        return consumed

    def _drop(self, data: bytes) -> int:
        taken = min(self._left or 0, len(data))
        self._left = (self._left or 0) - taken
        self.completed = self._left == 0
        return taken


class ErrorAnswer(ErrorTask):  # type: ignore[misc]
    """The application never hears of a body that is too large; who counts them does."""

    def execute(self) -> None:
        """Answer it."""
        on_too_large = self.channel.server.on_too_large
        if on_too_large is not None and isinstance(self.request.error, RequestEntityTooLarge):
            on_too_large(self.request.path, self.channel.addr[0])
        super().execute()
