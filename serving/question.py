"""Questions to a disk or a server of files that may never answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Unanswered(Exception):  # noqa: N818  not an error of whoever asks
    """It has not answered yet, and perhaps never will."""


class Question(Generic[T]):
    """A question that a thread of its own asks, one at a time, so that whoever waits can stop waiting.

    Its owner guards it against other threads.
    """

    def __init__(self, ask: Callable[[], T], name: str) -> None:
        """Prepare; `name` is that of the thread."""
        self._ask = ask
        self._name = name
        self._last: Asked[T] | None = None

    def begin(self) -> Asked[T]:
        """Ask, unless what was asked before has not come back: then return that.

        Raises:
            Unanswered: there is no thread to be had now.
        """
        if self._last is None or self._last.is_answered:
            asked = Asked(self._ask)
            try:
                threading.Thread(target=asked.run, name=self._name, daemon=True).start()
            except RuntimeError as error:
                raise Unanswered from error
            self._last = asked
        return self._last


class Asked(Generic[T]):
    """A question that was asked."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._done = threading.Event()
        self._found: list[T] = []
        self._error: Exception | None = None
        self._is_late = False

    @property
    def is_answered(self) -> bool:
        """Whether it has come back."""
        return self._done.is_set()

    def answer(self, patience: float) -> T:
        """Return what was found within `patience` seconds; once that was not enough nobody waits again.

        Raises:
            Unanswered: it has not come back.
            Exception: what asking raised.
        """
        if not self._done.wait(0.0 if self._is_late else max(0.0, patience)):
            self._is_late = True
            raise Unanswered
        if self._error is not None:
            raise self._error
        return self._found[0]

    def run(self) -> None:
        """Ask; the question's own thread calls this."""
        try:
            self._found.append(self._ask())
        except Exception as error:  # noqa: BLE001  it is raised where the answer is waited for
            self._error = error
        finally:
            self._done.set()
