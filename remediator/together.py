"""Work that costs the same for many as for one: whoever comes meanwhile shares the next turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from remediator.errors import RemediatorError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class _Ticket(Generic[_Item, _Result]):
    """One item in line, and what came of it."""

    item: _Item
    results: tuple[_Result, ...] = ()
    error: Exception | None = None
    is_done: bool = False


class Together(Generic[_Item, _Result]):
    """Does the items of many threads at once; each thread gets the result of its own.

    The first in line does the work for all that wait; nobody waits for others to come.
    """

    def __init__(
        self,
        work: Callable[[Sequence[_Item]], Sequence[_Result]],
        size: Callable[[_Item], int],
        most: int,
    ) -> None:
        """Prepare it.

        Args:
            work: does some items, all or none of them; the results are in their order.
            size: how large an item is.
            most: how large all items of a turn are together, unless one alone is larger.
        """
        self._work = work
        self._size = size
        self._most = most
        self._line: list[_Ticket[_Item, _Result]] = []
        self._turn = threading.Lock()

    def do(self, item: _Item) -> _Result:
        """The result of `item`.

        Raises:
            RemediatorError: what `work` raised for the turn that it was in.
        """
        ticket: _Ticket[_Item, _Result] = _Ticket(item)
        # Appending is atomic; only who has the turn takes from the line.
        self._line.append(ticket)
        with self._turn:
            # It is among the first in line now, or somebody else has done it.
            while not ticket.is_done:
                self._take_turn()
        if ticket.error is not None:
            raise ticket.error
        return ticket.results[0]

    def _take_turn(self) -> None:
        batch = [self._line.pop(0)]
        size = self._size(batch[0].item)
        while self._line and size + self._size(self._line[0].item) <= self._most:
            batch.append(self._line.pop(0))
            size += self._size(batch[-1].item)
        self._carry_out(batch)

    def _carry_out(self, batch: Sequence[_Ticket[_Item, _Result]]) -> None:
        try:
            results = self._work([ticket.item for ticket in batch])
            for ticket, result in zip(batch, results, strict=True):
                ticket.results = (result,)
        except RemediatorError as error:
            for ticket in batch:
                ticket.error = error
        except Exception as error:  # noqa: BLE001 - it is raised where its item came from
            if len(batch) == 1:
                batch[0].error = error
            else:
                # A bug that one of them met must not take the others with it.
                for ticket in batch:
                    self._carry_out([ticket])
        for ticket in batch:
            ticket.is_done = True
