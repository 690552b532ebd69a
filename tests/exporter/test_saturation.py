from __future__ import annotations

import pytest

from exporter.policy import SaturationPolicy
from exporter.saturation import UtilisationHistory


def history(*samples: tuple[float, float]) -> UtilisationHistory:
    made = UtilisationHistory(SaturationPolicy(ratio=0.99, seconds=30), interval=1.0)
    for at, ratio in samples:
        made.add(ratio, at)
    return made


def test_nothing_is_known_before_the_first_sample() -> None:
    assert history().saturated_seconds(0) is None
    assert history().busy_seconds is None


def test_unbroken_saturation_adds_up() -> None:
    assert history(*((t, 1.0) for t in range(31))).saturated_seconds(30) == 30


def test_one_sample_below_the_threshold_ends_it() -> None:
    seen = history((0, 1.0), (1, 1.0), (2, 0.98), (3, 1.0), (4, 1.0))
    assert seen.saturated_seconds(4) == 1


def test_a_missed_sample_neither_extends_nor_ends_it() -> None:
    before = history((0, 1.0), (1, 1.0), (2, 1.0))
    assert before.saturated_seconds(4.4) == 2
    before.add(1.0, 5.0)
    assert before.saturated_seconds(5) == 3


def test_after_three_missed_samples_it_is_absent_and_begins_anew() -> None:
    seen = history((0, 1.0), (1, 1.0))
    assert seen.saturated_seconds(4.4) == 1
    assert seen.saturated_seconds(4.6) is None
    seen.add(1.0, 6.0)
    assert seen.saturated_seconds(6) == 0


def test_a_sample_that_is_a_little_late_counts_in_full() -> None:
    assert history((0, 1.0), (1.3, 1.0)).saturated_seconds(1.3) == pytest.approx(1.3)


def test_the_threshold_itself_is_saturated() -> None:
    assert history((0, 0.99), (1, 0.99)).saturated_seconds(1) == 1


def test_busy_time_is_the_integral_over_seen_time() -> None:
    seen = history((0, 1.0), (1, 0.5), (2, 1.0), (60, 1.0), (61, 0.25))
    assert seen.busy_seconds == pytest.approx(0.5 + 1.0 + 0.25)


def test_time_that_a_second_reader_tells_of_again_counts_once() -> None:
    seen = history((0, 1.0))
    for at, told in ((1.0, 1.0), (2.0, 1.0), (2.9, 0.9)):
        seen.cover(((told, 1.0),), at)
    assert seen.busy_seconds == pytest.approx(2.9)
    # It read at 2.1 before, which was held back, and then each second.
    for at in (3.1, 4.1, 5.1):
        seen.cover(((1.0, 1.0),), at)
    assert seen.busy_seconds == pytest.approx(5.1)
    assert seen.saturated_seconds(5.1) == pytest.approx(5.1)


def test_what_the_driver_tells_late_was_not_counted_before() -> None:
    seen = history((0, 0.5))
    for at, told in ((0.2, 0.0), (0.4, 0.0), (0.6, 0.0), (0.8, 0.0), (1.0, 0.0), (1.2, 1.0)):
        seen.cover(((told, 0.5),) if told else (), at)
    assert seen.busy_seconds == pytest.approx(0.5)
