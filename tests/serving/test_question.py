"""A question that may never be answered costs who asks no more than its patience."""

from __future__ import annotations

import threading

import pytest

from serving.question import Question, Unanswered


class Disk:
    """What is asked; it answers while `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = 0

    def look(self) -> int:
        self.asked += 1
        assert self.answers.wait(30)
        return self.asked


@pytest.fixture
def disk():
    made = Disk()
    yield made
    made.answers.set()


def test_each_question_is_asked_anew_once_the_last_was_answered(disk) -> None:
    disk.answers.set()
    question = Question(disk.look, "disk")
    assert [question.begin().answer(30) for _ in range(3)] == [1, 2, 3]


def test_one_that_is_not_answered_is_asked_once_and_waited_for_once(disk, eventually) -> None:
    question = Question(disk.look, "disk")
    with pytest.raises(Unanswered):
        question.begin().answer(0.01)
    for _ in range(3):
        # Nobody waits a second time: this would take a minute each.
        with pytest.raises(Unanswered):
            question.begin().answer(60)
    eventually(lambda: disk.asked == 1)
    late = question.begin()
    disk.answers.set()
    eventually(lambda: late.is_answered)
    assert late.answer(0) == 1
    assert question.begin().answer(30) == 2


def test_without_a_thread_there_is_no_answer_and_the_next_one_is_asked(disk, monkeypatch) -> None:
    def refuse(thread) -> None:
        raise RuntimeError("can't start new thread")

    disk.answers.set()
    question = Question(disk.look, "disk")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(Unanswered):
                question.begin()
    assert question.begin().answer(30) == 1


def test_what_asking_raises_is_raised_to_who_waits() -> None:
    def fail() -> None:
        raise OSError(116, "Stale file handle")

    question = Question(fail, "disk")
    for _ in range(2):
        with pytest.raises(OSError, match="Stale"):
            question.begin().answer(30)
