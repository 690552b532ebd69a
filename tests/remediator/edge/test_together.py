"""Deliveries that come at once are one commit; each gets its own answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from remediator.errors import StorageError
from remediator.together import Together


class Work:
    """Doubles numbers; the first turn waits until it is let go."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.turns.append(list(items))
        self.begun.set()
        assert self.go_on.wait(60)
        if 13 in items:
            raise StorageError("full")
        if 0 in items:
            raise ZeroDivisionError
        return [2 * item for item in items]


def all_at_once(items: Sequence[int], most: int = 100) -> tuple[Work, dict[int, object]]:
    """The first item's turn is under way when the others come."""
    work, found = Work(), {}
    together: Together[int, int] = Together(work, lambda _: 1, most)

    def ask(item: int) -> None:
        try:
            found[item] = together.do(item)
        except (StorageError, ZeroDivisionError) as error:
            found[item] = type(error)

    threads = [threading.Thread(target=ask, args=(item,)) for item in items]
    threads[0].start()
    assert work.begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    while len(together._line) < len(items) - 1:
        pass
    work.go_on.set()
    for thread in threads:
        thread.join()
    return work, found


def test_who_comes_meanwhile_shares_the_next_turn() -> None:
    work, found = all_at_once([1, 2, 3, 4])
    assert found == {1: 2, 2: 4, 3: 6, 4: 8}
    assert [len(turn) for turn in work.turns] == [1, 3]


def test_a_turn_has_an_end() -> None:
    work, found = all_at_once([1, 2, 3, 4, 5, 6], most=2)
    assert found == {item: 2 * item for item in range(1, 7)}
    assert [len(turn) for turn in work.turns] == [1, 2, 2, 1]


def test_what_could_not_be_kept_was_kept_for_nobody_of_that_turn() -> None:
    _, found = all_at_once([1, 13, 3])
    assert found == {1: 2, 13: StorageError, 3: StorageError}


def test_a_bug_that_one_meets_is_no_matter_of_the_others() -> None:
    _, found = all_at_once([1, 0, 3])
    assert found == {1: 2, 0: ZeroDivisionError, 3: 6}


@pytest.mark.parametrize("item", [0, 13])
def test_alone_it_raises_what_happened(item: int) -> None:
    _, found = all_at_once([item])
    assert found[item] in (StorageError, ZeroDivisionError)
