"""`plan --replay`: what would have been done on a recorded day, without touching anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remediator import recorded
from remediator.errors import ConfigError
from tests.remediator.edge.support import GPU, SERVICE, alert, payload, write_config

Cli = Callable[..., tuple[int, str, str]]
DAY = "2026-11-21T"
OTHER = "GPU-99999999-2222-3333-4444-555555555555"


def delivery(time: str, *alerts: Any) -> str:
    return json.dumps({"time": f"{DAY}{time}Z", "body": payload(*alerts)})


def firing(name: str, since: str, **labels: str) -> dict[str, Any]:
    return alert(name, starts=f"{DAY}{since}Z", **labels)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(
        tmp_path,
        mode="auto",
        allow=["service_restart", "service_stop"],
        services=[SERVICE],
        # Whoever asked these would hang or fail: nobody may.
        exporter={"url": "http://127.0.0.1:9", "timeout": "1s"},
    )


def played(cli: Cli, config: Path, lines: list[str], *more: str) -> tuple[int, str, str]:
    file = config.parent / "day.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return cli("plan", f"--replay={file}", f"--config.file={config}", *more)


def test_what_would_have_been_done_and_a_table(cli: Cli, config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    code, out, _ = played(
        cli,
        config,
        [
            delivery("10:00:05", firing("GPUTemperatureWarning", "10:00:00")),
            delivery("10:05:00", firing("LLMServiceDown", "10:04:55", llm_service="ollama")),
            delivery("10:06:00", firing("GPUTemperatureWarning", "10:00:00")),
            delivery("10:07:00", firing("GPUHang", "10:06:55", uuid=OTHER)),
            delivery("10:08:00", firing("SomethingElse", "10:07:55", uuid=OTHER)),
        ],
    )
    assert code == 0
    assert f"2026-11-21 10:00:05 GPUTemperatureWarning gpu:{GPU}: throttle-gpu acts" in out
    assert f"would: cap_power on {GPU}" in out
    assert "evidence was not recorded: assumed" in out
    assert "would: restart_service on ollama" in out or "on ollama" in out
    table = out[out.index("playbook ") :]
    assert "throttle-gpu     act (accepted) x1" in table
    assert "not_in_inventory" in table
    assert "no_playbook" in table
    assert "nothing was run" in table
    assert sorted(config.parent.rglob("*")) == sorted([*before, config.parent / "day.jsonl"])


def test_a_flapping_service_meets_its_budgets(cli: Cli, config: Path) -> None:
    lines = []
    for minute in range(0, 50, 5):
        one = firing("LLMServiceDown", f"10:{minute:02}:00", llm_service="ollama")
        over = alert(
            "LLMServiceDown",
            status="resolved",
            starts=f"{DAY}10:{minute:02}:00Z",
            ends=f"{DAY}10:{minute + 4:02}:00Z",
            llm_service="ollama",
        )
        lines += [delivery(f"10:{minute:02}:05", one), delivery(f"10:{minute + 4:02}:00", over)]
    _, out, _ = played(cli, config, lines)
    assert "act (accepted) x3" in out
    assert "refuse (attempts)" in out


def test_windows_are_those_of_the_replayed_time(cli: Cli, tmp_path: Path) -> None:
    window = {"name": "backup", "start": "10:00", "end": "10:03"}
    config = write_config(tmp_path, mode="auto", windows=[window])
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "KILL").touch()
    lines = [
        delivery("10:00:05", firing("GPUTemperatureWarning", "10:00:00")),
        delivery("10:20:05", firing("GPUTemperatureWarning", "10:00:00")),
    ]
    _, out, _ = played(cli, config, lines)
    assert "defer (maintenance_window) x1, act (accepted) x1" in out
    assert "kill_switch" not in out


@pytest.mark.parametrize(
    ("mode", "said"), [("observe", "only observe"), ("approve", "ask a person")]
)
def test_another_mode_may_be_tried(cli: Cli, config: Path, mode: str, said: str) -> None:
    lines = [delivery("10:00:05", firing("GPUTemperatureWarning", "10:00:00"))]
    _, out, _ = played(cli, config, lines, f"--mode={mode}")
    assert f"{said} (" in out


def audit_record(seq: int, event: str, **more: Any) -> str:
    return json.dumps(
        {
            "seq": seq,
            "time": 1_795_000_000.0 + seq,
            "event": event,
            "episode": 1,
            "alertname": "GPUTemperatureWarning",
            "reason": "",
            "sentence": "x",
            "data": {},
            **more,
        }
    )


@pytest.mark.parametrize(
    ("decision", "reason", "said"),
    [
        ("refute", "below_threshold", "refute (below_threshold) x1"),
        ("run", "accepted", "act (accepted) x1"),
        ("defer", "no_fresh_reading", "defer (no_fresh_reading) x1"),
    ],
)
def test_an_audit_export_is_replayed_on_the_evidence_of_that_day(
    cli: Cli, config: Path, decision: str, reason: str, said: str
) -> None:
    labels = {"alertname": "GPUTemperatureWarning", "uuid": GPU}
    received = {"labels": labels, "starts_at": 1_795_000_000.0}
    decided = {"decision": decision, "playbook": "throttle-gpu", "evidence": {}}
    lines = [
        audit_record(1, "started", episode=None),
        audit_record(2, "alert_received", data=received),
        audit_record(3, "decision", reason=reason, data=decided),
        audit_record(4, "alert_resolved", data=received),
    ]
    code, out, _ = played(cli, config, lines)
    assert code == 0
    assert said in out
    assert "assumed" not in out


@pytest.mark.parametrize(
    ("decision", "reason", "words", "after"),
    [
        ("run", "accepted", "acts", ""),
        ("observe", "mode_observe", "only observes", ". Observing only; would: cap_power on x"),
        ("ask", "needs_approval", "asks for approval", ". A person has to approve it"),
    ],
)
def test_an_audit_export_is_replayed_without_repeating_what_was_decided(
    cli: Cli, config: Path, decision: str, reason: str, words: str, after: str
) -> None:
    labels = {"alertname": "GPUTemperatureWarning", "uuid": GPU}
    received = {"labels": labels, "starts_at": 1_795_000_000.0}
    decided = {"decision": decision, "playbook": "throttle-gpu", "evidence": {}}
    said = f"throttle-gpu {words}: {reason}: 88: too hot{after}"
    lines = [
        audit_record(2, "alert_received", data=received),
        audit_record(3, "decision", reason=reason, data=decided, sentence=said),
    ]
    _, out, _ = played(cli, config, lines)
    (line,) = [one for one in out.splitlines() if "too hot" in one]
    assert line.endswith(f" gpu:{GPU}: throttle-gpu acts: accepted: 88: too hot")


def test_what_amtool_prints_is_read() -> None:
    listed = {
        "labels": {"alertname": "GPUHang", "uuid": GPU},
        "startsAt": "2026-11-21T10:00:00.000Z",
        "endsAt": "2026-11-21T10:05:00.000Z",
        "status": {"state": "active"},
    }
    day = recorded.read(json.dumps([listed, {**listed, "status": {"state": "resolved"}}]))
    statuses = [one.notification.alerts[0].status for one in day.deliveries]
    assert statuses == ["firing", "firing", "resolved"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("7", "line 2 is not a JSON object"),
        ("{}", "line 2: "),
        ('{"time": "yesterday", "body": {}}', "line 2: "),
        ('{"seq": 1, "event": "alert_received", "time": 5}', "line 2: the key 'data' is missing"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, said: str) -> None:
    good = delivery("10:00:05", firing("GPUHang", "10:00:00"))
    with pytest.raises(ConfigError, match=said):
        recorded.read(f"{good}\n{line}\n")


def test_an_empty_or_missing_file_is_an_error(cli: Cli, config: Path) -> None:
    code, _, err = played(cli, config, [])
    assert (code, "holds no delivery" in err) == (1, True)
    code, _, err = cli("plan", "--replay=/nonexistent", f"--config.file={config}")
    assert (code, "cannot read" in err) == (1, True)


def test_plan_takes_the_beginning_of_a_uuid(cli: Cli, tmp_path: Path) -> None:
    config = write_config(tmp_path, gpus={"control": "none", "inventory": [GPU, OTHER]})
    flag = f"--config.file={config}"
    _, out, _ = cli("plan", "--alert=GPUTemperatureWarning", f"--uuid={GPU[:12]}", flag)
    assert f"on gpu:{GPU}" in out
    code, _, err = cli("plan", "--alert=GPUTemperatureWarning", "--uuid=GPU-", flag)
    assert (code, "several GPUs begin with GPU-" in err) == (1, True)
