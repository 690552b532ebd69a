"""A person says yes to exactly one plan, once, while it is what they were shown."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.cli import operate
from remediator.config.windows import WindowConfig
from tests.remediator.edge.support import (
    GPU,
    TOKENS,
    ExporterStandIn,
    InProcess,
    alert,
    in_process,
)

RUN = "/api/v1/runs/1"


@contextlib.contextmanager
def asking(tmp_path: Path, exporter: ExporterStandIn) -> Iterator[InProcess]:
    """A card above its warning threshold, and a run that asks whether it may be capped."""
    exporter.gpu["temperature"] = 84.0
    over: dict[str, Any] = {"exporter": {"url": exporter.url}, "mode": "approve"}
    with in_process(tmp_path, **over) as made:
        exporter.gpu["timestamp"] = made.clock.now()
        starts = made.clock.now() - 5
        made.deliver(alert(starts=_rfc3339(starts)))
        made.remediator.evaluator.evaluate(1)
        with made.store.reading() as tx:
            assert [run.state for run in tx.runs.latest(2)] == ["awaiting_approval"]
        yield made


@pytest.fixture
def hot(tmp_path: Path, exporter: ExporterStandIn) -> Iterator[InProcess]:
    with asking(tmp_path, exporter) as made:
        yield made


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def token_of(made: InProcess) -> str:
    reply = made.client("operate").get(f"{RUN}/approval")
    assert reply.status_code == 200, reply.json
    return str(reply.json["token"])


def approve(made: InProcess, token: str | None = None) -> Any:
    sent = {"token": token_of(made) if token is None else token}
    return made.client("operate").post(f"{RUN}/approve", json=sent)


def test_who_operates_is_shown_the_plan_and_its_token_and_nobody_else(hot: InProcess) -> None:
    shown = hot.client("operate").get(f"{RUN}/approval").json
    assert shown["run"] == 1
    assert [step["step"]["action"] for step in shown["plan"]] == ["cap_power"]
    assert list(shown["means"]) == [f"GPU {GPU}"]
    assert shown["evidence"]["reason"]
    assert shown["expires_at"] == hot.clock.now() + 900
    for role, status in (("webhook", 403), ("read", 403), (None, 401)):
        reply = hot.client(role).get(f"{RUN}/approval")
        assert (reply.status_code, b"token" in reply.data and status == 200) == (status, False)
    everything = json.dumps([hot.client("read").get(path).json for path in ("/api/v1/runs", RUN)])
    assert shown["token"] not in everything


def test_it_is_approved_once_by_its_token_and_audited_with_who(hot: InProcess) -> None:
    token = token_of(hot)
    assert approve(hot, token).json == {"run": 1, "answer": "approved"}
    again = approve(hot, token)
    assert again.status_code == 409
    assert "was approved by the operate token" in again.json["error"]
    denied = hot.client("operate").post(f"{RUN}/deny")
    assert (denied.status_code, "was approved" in denied.json["error"]) == (409, True)
    with hot.store.reading() as tx:
        (record,) = [r.record for r in tx.audit_records() if r.record["event"] == "approved"]
    assert (record["run"], record["data"]) == (1, {"by": "the operate token"})


def test_the_command_prints_what_it_approves_and_why_it_was_asked(
    hot: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked_here(_: Any, method: str, path: str, body: Any = None) -> Any:
        return hot.client("operate").open(path, method=method, json=body).json

    monkeypatch.setattr(operate, "ask", asked_here)
    assert operate.approve(hot.config.web, 1, "") == 0
    said, why, step, means, end = capsys.readouterr().out.splitlines()
    assert said == f"run 1: throttle-gpu on gpu:{GPU} for GPUTemperatureWarning"
    assert why.startswith("  why: throttle-gpu asks for approval: needs_approval: ")
    assert "84" in why
    assert step == f"  1. rung 1: cap_power (to 80%) on {GPU}"
    assert means.startswith(f"  GPU {GPU}: ")
    assert end.startswith("run 1 is approved")


@pytest.mark.parametrize("token", ["", "x" * 32, "\x00", "é" * 32])
def test_another_token_approves_nothing(hot: InProcess, token: str) -> None:
    assert approve(hot, token).status_code == 409
    assert hot.client("operate").post(f"{RUN}/approve").status_code == 409
    assert hot.client("operate").post(f"{RUN}/approve", json={"token": 7}).status_code == 400
    with hot.store.reading() as tx:
        assert tx.runs.get(1).state == "awaiting_approval"
    assert approve(hot).status_code == 200, "a wrong one does not use up the right one"


def test_an_approval_that_came_too_late_is_refused(hot: InProcess) -> None:
    token = token_of(hot)
    hot.clock.seconds += 901
    reply = approve(hot, token)
    assert (reply.status_code, "expired" in reply.json["error"]) == (409, True)


def test_an_approval_that_a_gate_keeps_back_is_refused_with_its_reason_and_until_when(
    tmp_path: Path, exporter: ExporterStandIn
) -> None:
    with asking(tmp_path, exporter) as made:
        token = token_of(made)
        made.client("operate").post("/api/v1/pause", json={"why": "somebody is at the rack"})
        reply = approve(made, token)
        assert (reply.status_code, reply.json["reason"], reply.json["until"]) == (
            409,
            "paused",
            None,
        )
        assert "somebody is at the rack" in reply.json["error"]
        made.client("operate").post("/api/v1/resume")
        assert approve(made, token).status_code == 200


def test_an_approval_in_a_window_is_told_its_end(tmp_path: Path, exporter: ExporterStandIn) -> None:
    with asking(tmp_path, exporter) as made:
        token, begins = token_of(made), made.clock.now() + 60
        day = datetime.fromtimestamp(begins, UTC)
        window = WindowConfig("move", f"{day:%H:%M}", f"{day + timedelta(minutes=7):%H:%M}")
        made.remediator.world.config = replace(made.config, windows=(window,))
        made.clock.seconds += 120
        exporter.gpu["timestamp"] = made.clock.now()
        reply = approve(made, token)
        assert (reply.status_code, reply.json["reason"]) == (409, "maintenance_window")
        ends = (day + timedelta(minutes=7)).replace(second=0, microsecond=0)
        assert reply.json["until"] == ends.timestamp()
        assert f"approve it again after {ends:%Y-%m-%d %H:%M}:00 UTC" in reply.json["error"]


def test_windows_that_follow_each_other_without_an_end_have_none(
    tmp_path: Path, exporter: ExporterStandIn
) -> None:
    with asking(tmp_path, exporter) as made:
        token = token_of(made)
        made.remediator.world.config = replace(
            made.config, windows=(WindowConfig("always", "00:00", "24:00"),)
        )
        reply = approve(made, token)
        assert (reply.status_code, reply.json["reason"]) == (409, "maintenance_window")
        assert reply.json["until"] is None
        assert "approve it again after" not in reply.json["error"]


def test_a_denied_run_is_over(hot: InProcess) -> None:
    token = token_of(hot)
    assert hot.client("operate").post(f"{RUN}/deny").json == {"run": 1, "answer": "denied"}
    assert approve(hot, token).status_code == 409
    assert hot.client("operate").get(f"{RUN}/approval").status_code == 409


def test_what_is_not_there_is_404(hot: InProcess) -> None:
    operator = hot.client("operate")
    assert operator.get("/api/v1/runs/7/approval").status_code == 404
    assert operator.post("/api/v1/runs/7/approve").status_code == 404
    assert operator.post("/api/v1/runs/7/deny").status_code == 404


@pytest.mark.parametrize(
    "changed",
    [
        "UPDATE runs SET plan = '[]' WHERE id = 1",
        "UPDATE approvals SET means = '{}' WHERE run_id = 1",
        "UPDATE approvals SET evidence = '{}' WHERE run_id = 1",
        "UPDATE approvals SET nonce = 'x' WHERE run_id = 1",
    ],
)
def test_the_token_is_of_the_plan_as_it_is_stored(hot: InProcess, changed: str) -> None:
    token = token_of(hot)
    with hot.store.transaction() as tx:
        tx._db.execute(changed)
    assert approve(hot, token).status_code == 409
    assert token_of(hot) != token


def test_the_tokens_are_in_no_file(hot: InProcess, tmp_path: Path) -> None:
    token = token_of(hot).encode()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token not in path.read_bytes()
    assert TOKENS
