"""Maintenance windows: what their texts mean, through midnight and through changes of the clock."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.config import load
from remediator.config.windows import WindowConfig, times_of
from remediator.errors import ConfigError
from remediator.policy import windows

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN, *, fold: int = 0) -> float:
    wall = datetime.fromisoformat(text)
    return wall.replace(tzinfo=zoneinfo.ZoneInfo(zone), fold=fold).timestamp()


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def window(start: str, end: str, **more: object) -> WindowConfig:
    return WindowConfig("w", start, end, **{"timezone": BERLIN, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "inside", "outside"),
    [
        # each day, its end not included
        (
            window("09:00", "17:00"),
            ["2026-06-01 09:00", "2026-06-01 16:59:59"],
            ["2026-06-01 17:00", "2026-06-01 08:59:59"],
        ),
        # over midnight
        (
            window("22:00", "06:00"),
            ["2026-06-01 22:00", "2026-06-02 05:59"],
            ["2026-06-02 06:00", "2026-06-01 21:59"],
        ),
        # some days, by the one on which it begins: the 5th of June 2026 is a Friday
        (
            window("22:00", "06:00", days=("fri",)),
            ["2026-06-05 23:00", "2026-06-06 05:00"],
            ["2026-06-05 05:00", "2026-06-06 23:00"],
        ),
        # a whole day
        (
            window("00:00", "24:00", days=("sat",)),
            ["2026-06-06 00:00", "2026-06-06 23:59:59"],
            ["2026-06-05 23:59:59", "2026-06-07 00:00"],
        ),
        # each week, over several days, and over its end
        (
            window("fri 18:00", "mon 06:00"),
            ["2026-06-05 18:00", "2026-06-07 12:00", "2026-06-08 05:59"],
            ["2026-06-05 17:59", "2026-06-08 06:00", "2026-06-10 12:00"],
        ),
        (
            window("mon 06:00", "mon 05:00"),
            ["2026-06-01 06:00", "2026-06-04 12:00", "2026-06-08 04:59"],
            ["2026-06-08 05:30"],
        ),
        # once
        (
            window("2026-11-28 20:00", "2026-11-29T06:00"),
            ["2026-11-28 20:00", "2026-11-29 05:59"],
            ["2026-11-28 19:59", "2026-11-29 06:00"],
        ),
    ],
)
def test_a_window_is_open_when_it_says(
    made: WindowConfig, inside: list[str], outside: list[str]
) -> None:
    assert all(windows.until(made, at(text)) is not None for text in inside)
    assert not any(windows.until(made, at(text)) for text in outside)


def test_an_offset_beats_the_time_zone() -> None:
    made = window("2026-11-28T20:00+00:00", "2026-11-28T22:00Z")
    assert windows.until(made, utc("2026-11-28 20:00")) == utc("2026-11-28 22:00")


def test_in_spring_what_the_clocks_skip_begins_when_they_jump() -> None:
    made = window("02:30", "05:00")
    jump = utc("2026-03-29 01:00")  # 02:00 becomes 03:00
    assert windows.until(made, jump - 1) is None
    assert windows.until(made, jump) == utc("2026-03-29 03:00")
    # An end that is skipped is so much later: the work of that night still has its time.
    short = window("02:15", "02:45")
    assert windows.until(short, jump) == utc("2026-03-29 01:45")


def test_in_autumn_what_the_clocks_show_twice_begins_first_and_ends_second() -> None:
    made = window("02:15", "02:45")
    begins, ends = utc("2026-10-25 00:15"), utc("2026-10-25 01:45")
    assert windows.until(made, begins - 1) is None
    # Without a break: 02:50 by the first reading of the clock is inside, too.
    for moment in (begins, utc("2026-10-25 00:50"), utc("2026-10-25 01:10"), ends - 1):
        assert windows.until(made, moment) == ends
    assert windows.until(made, ends) is None


zones = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]
)
clock_times = st.builds(lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.integers(0, 59))


@given(
    zones,
    clock_times,
    clock_times,
    st.integers(0, 370 * 24 * 60).map(lambda minutes: utc("2026-01-01") + 60 * minutes),
)
@settings(max_examples=200, deadline=None)
def test_an_open_window_ends_when_it_says_and_lasts_at_least_as_long(
    zone: str, start: str, end: str, now: float
) -> None:
    if start == end:
        return
    made = window(start, end, timezone=zone)
    until = windows.until(made, now)
    if until is None:
        local = datetime.fromtimestamp(now, zoneinfo.ZoneInfo(zone)).strftime("%H:%M")
        inside = start <= local < end if start < end else local >= start or local < end
        assert not inside, "what the clock on the wall calls inside is inside"
        return
    assert now < until <= now + 86400 + 2 * 3600
    assert windows.until(made, until - 1) is not None
    shown = datetime.fromtimestamp(until, zoneinfo.ZoneInfo(zone))
    skipped = shown.strftime("%H:%M") != end
    day_before = datetime.fromtimestamp(until - 86400, zoneinfo.ZoneInfo(zone))
    assert not skipped or shown.utcoffset() != day_before.utcoffset()


def test_a_window_holds_for_what_it_names() -> None:
    now = utc("2026-06-01 12:00")
    everything = window("00:00", "24:00")
    named = window("00:00", "24:00", playbooks=("cool-down",), services=("vllm",), gpus=("GPU-1",))

    def closed(made: WindowConfig, playbook: str, *touches: str, heat: bool = False) -> bool:
        return bool(windows.closing([made], now, playbook, touches, stop_for_heat=heat))

    assert closed(everything, "recover-oom", "service:ollama")
    assert closed(named, "cool-down", "gpu:GPU-2")
    assert closed(named, "recover-oom", "service:vllm")
    assert closed(named, "throttle-gpu", "gpu:GPU-1")
    assert closed(named, "recover-oom", "service:ollama", windows.ANY_GPU)
    assert not closed(named, "recover-oom", "service:ollama", "gpu:GPU-2")
    assert not closed(everything, "emergency-stop", "gpu:GPU-1", heat=True)
    also = window("00:00", "24:00", also_stops=True)
    assert closed(also, "emergency-stop", "gpu:GPU-1", heat=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start": "25:00"}, "like 22:00"),
        ({"end": "24:01"}, "like 22:00"),
        ({"end": "fri 18:00"}, "both"),
        ({"start": "2026-11-28", "end": "2026-11-29"}, "2026-11-28 20:00"),
        ({"start": "2026-11-29 01:00", "end": "2026-11-28 01:00"}, "before it begins"),
        ({"start": "06:00"}, "no length"),
        ({"start": "fri 06:00", "end": "sat 06:00", "days": ("mon",)}, "days"),
        ({"timezone": "Europe/Berlinn"}, "like Europe/Berlin"),
        ({"timezone": "../../etc/passwd"}, "like Europe/Berlin"),
        ({"timezone": "Europe"}, "like Europe/Berlin"),
    ],
)
def test_what_is_not_understood_is_an_error_that_says_what_is(
    change: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        times_of(WindowConfig(**{"name": "w", "start": "22:00", "end": "06:00", **change}), "w")  # type: ignore[arg-type]


def test_a_machine_without_time_zones_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(name: str) -> object:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", none)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    with pytest.raises(ConfigError, match="tzdata"):
        times_of(window("22:00", "06:00"), "w")
    times_of(window("22:00", "06:00", timezone="UTC"), "w")


def test_yaml_does_not_turn_a_time_into_a_number(tmp_path: Path) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text(
        f"state_dir: {tmp_path}\nwindows:\n"
        "  - {name: night, start: 22:00, end: 06:30, timezone: Europe/Berlin}\n"
        "  - {name: move, start: 2026-11-28 20:00, end: 2026-11-29T06:00:00+01:00}\n"
    )
    night, move = load(path).windows
    assert (night.start, night.end) == ("22:00", "06:30")
    assert windows.until(move, utc("2026-11-29 04:59")) == utc("2026-11-29 05:00")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{name: a, start: 22:00, end: 06:00, services: [olama]}", "services must be one of"),
        ("{name: '', start: 22:00, end: 06:00}", "name"),
        ("{name: a, start: 22:00, end: 06:00, zone: UTC}", "unknown key"),
        ("{name: a, start: 22:00}", "needs the key 'end'"),
        ("{name: a, start: 22:00, end: 06:00, days: [monday]}", "must be one of mon"),
    ],
)
def test_a_window_that_would_never_hold_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "remediator.yml"
    path.write_text(f"state_dir: {tmp_path}\nwindows:\n  - {line}\n")
    with pytest.raises(ConfigError, match=said):
        load(path)


def test_two_windows_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "remediator.yml"
    one = "  - {name: a, start: 22:00, end: 06:00}\n"
    path.write_text(f"state_dir: {tmp_path}\nwindows:\n{one}{one}")
    with pytest.raises(ConfigError, match="two are called"):
        load(path)


def test_the_longest_window_is_found_on_its_last_day() -> None:
    made = window("mon 06:00", "mon 05:59")
    start = at("2026-06-01 06:00")
    assert windows.until(made, start + timedelta(days=6, hours=23).total_seconds()) is not None
