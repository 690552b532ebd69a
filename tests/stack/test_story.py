"""The story: one aligned line per thing that happens, nothing twice, nothing unprintable."""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.errors import Unreachable
from deploy.local.story import Line, Narrator, from_record, wants_colour

UUID = "GPU-5c1a3f2e-1111-2222-3333-444455556666"


def record(seq: int, event: str, sentence: str, **more: Any) -> dict[str, Any]:
    return {
        "seq": seq,
        "time": 1_763_760_000.0 + seq,
        "event": event,
        "sentence": sentence,
        "severity": "info",
        "run": None,
        "alertname": "GPUTemperatureWarning",
        "target": UUID,
        **more,
    }


def alert(name: str, **annotations: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": name, "severity": "warning", "uuid": UUID},
        "annotations": annotations,
        "state": "firing",
    }


class Scripted:
    """A source whose content a test changes."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.firing: list[dict[str, Any]] = []
        self.pages: list[dict[str, Any]] = []
        self.away = False

    def audit(self, after: int = 0) -> list[dict[str, Any]]:
        if self.away:
            raise Unreachable("GET /api/v1/audit: connection refused")
        return [record for record in self.records if record["seq"] > after]

    def alerts(self) -> list[dict[str, Any]]:
        return self.firing

    def on_call(self) -> list[dict[str, Any]]:
        return self.pages


@pytest.fixture
def source() -> Scripted:
    return Scripted()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def narrator(utc: None, source: Scripted, said: list[str]) -> Narrator:
    ticks = itertools.count(1_763_760_000.0)
    return Narrator(source, said.append, colour=False, now=lambda: next(ticks))


def test_every_event_of_the_audit_has_a_word_that_fits_its_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "safety.md").read_text()
    table = page[page.index("### Events") : page.index("## The helper")]
    events = re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE)))
    assert "approval_kept_back" in events
    columns = {
        from_record(record(1, event, "Something.")).render(colour=False).index("GPUTemperature")
        for event in ["decision", *events]
    }
    assert len(columns) == 1


def test_records_are_aligned_lines_with_local_time(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    source.records = [
        record(1, "decision", f"{UUID} is at 84 °C, above 83: throttle-gpu."),
        record(2, "verified", "81 °C after 9 s."),
    ]
    narrator.catch_up()
    assert said == [
        "21:20:01  decision    GPUTemperatureWarning  GPU-5c1a3f2e is at 84 °C, above 83: "
        "throttle-gpu.",
        "21:20:02  verified    GPUTemperatureWarning  81 °C after 9 s.",
    ]


def test_nothing_is_told_twice(narrator: Narrator, source: Scripted, said: list[str]) -> None:
    source.records = [record(1, "decision", "one")]
    source.firing = [alert("GPUTemperatureWarning", description="Hot.")]
    narrator.catch_up()
    narrator.catch_up()
    assert len(said) == 2
    source.records.append(record(2, "undone", "two"))
    narrator.catch_up()
    assert len(said) == 3


def test_an_alert_comes_before_what_it_made_the_remediator_do(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    narrator.catch_up()
    source.firing = [alert("GPUTemperatureWarning", description="Hot.")]
    source.records = [record(3, "decision", "later"), record(2, "alert_received", "sooner")]
    narrator.catch_up()
    assert [line.rpartition(" ")[2] for line in said] == ["Hot.", "sooner", "later"]


def test_an_alert_is_told_when_it_fires_and_when_it_is_over(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    source.firing = [
        alert("GPUTemperatureWarning", description=f"A100 {UUID} is at 84.2 °C. The cap follows.")
    ]
    narrator.catch_up()
    source.firing = []
    narrator.catch_up()
    assert [line[10:] for line in said] == [
        "alert       GPUTemperatureWarning  A100 GPU-5c1a3f2e is at 84.2 °C.",
        "over        GPUTemperatureWarning  The alert no longer fires.",
    ]


def test_a_page_is_told_with_its_alerts(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    firing = {**alert("GPULost", summary="A GPU has fallen off the bus."), "status": "firing"}
    source.pages = [{"time": 1_763_760_000.0, "notification": {"alerts": [firing]}}]
    narrator.catch_up()
    narrator.catch_up()
    assert len(said) == 1
    assert "page" in said[0]
    assert "GPULost" in said[0]
    assert "fallen off the bus" in said[0]


def test_a_part_that_is_away_is_said_once_and_its_return_too(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    source.records = [record(1, "decision", "one")]
    source.away = True
    narrator.catch_up()
    narrator.catch_up()
    assert len(said) == 1
    assert "remediator does not answer" in said[0]
    source.away = False
    narrator.catch_up()
    assert any("answers again" in line for line in said)
    assert any(line.endswith("one") for line in said)


def test_a_sentence_cannot_forge_a_line_or_reach_the_terminal() -> None:
    line = from_record(record(1, "decision", "first\n12:00:00  verified \x1b[31mred\x9b"))
    rendered = line.render(colour=False)
    assert "\n" not in rendered
    assert "\x1b" not in rendered
    assert "\x9b" not in rendered


def test_colour_is_for_terminals_that_want_it() -> None:
    assert wants_colour({}, terminal=True)
    assert not wants_colour({}, terminal=False)
    assert not wants_colour({"NO_COLOR": "1"}, terminal=True)
    assert wants_colour({"NO_COLOR": ""}, terminal=True)
    critical = Line(0.0, "alert", "x", "y", "critical")
    assert "\x1b[31m" in critical.render(colour=True)
    assert "\x1b" not in critical.render(colour=False)


def test_the_heartbeat_is_not_a_story(
    narrator: Narrator, source: Scripted, said: list[str]
) -> None:
    source.records = [record(1, "decision", "recorded", alertname="Watchdog", target="")]
    narrator.catch_up()
    assert said == []


def test_a_card_without_an_alert_is_named_by_the_start_of_its_uuid() -> None:
    undone = record(1, "undone", "400 W again.", alertname="", target=f"gpu:{UUID}")
    assert (
        from_record(undone)
        .render(colour=False)
        .endswith("undone      gpu:GPU-5c1a3f2e       400 W again.")
    )


def test_a_run_that_waits_for_a_person_comes_with_the_command(
    source: Scripted, said: list[str], utc: None
) -> None:
    narrator = Narrator(source, said.append, colour=False, approve="gpu-remediator approve")
    source.records = [
        record(1, "decision", "throttle-gpu asks", reason="needs_approval"),
        record(2, "run_reserved", "run 7: throttle-gpu", run=7),
        record(3, "decision", "throttle-gpu acts", reason="accepted"),
        record(4, "run_reserved", "run 8: throttle-gpu", run=8),
    ]
    narrator.catch_up()
    (how,) = [line for line in said if "gpu-remediator approve" in line]
    assert how.endswith("gpu-remediator approve 7")
    assert said.index(how) == 2


def test_an_unknown_event_is_still_told() -> None:
    assert "lease_extended" not in from_record(record(1, "decision", "x")).render(colour=False)
    assert "lease extended" in from_record(record(1, "lease_extended", "x")).render(colour=False)
