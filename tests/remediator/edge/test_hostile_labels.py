"""Labels are keys into our own inventory and nothing else: none becomes an argument, a path or markup."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from remediator import runner
from remediator.log import configure, printable
from tests.remediator.edge.hostile_strings import STRINGS
from tests.remediator.edge.support import GPU, ExporterStandIn, InProcess, alert, in_process

# Every string carries this, so that it can be looked for wherever it must not be.
MARK = "zq7"
# Bare, as it is, and where something else stands around it.
CORPUS = [f"{MARK}{text}"[:1024] for text in STRINGS]
# Of each kind some, where one string costs much.
SOME = CORPUS[::8]
START_NOW = datetime.now(UTC).isoformat()

SERVICE = {
    "name": "ollama",
    "driver": "ollama",
    "endpoint": "http://127.0.0.1:9",
    "manager": {"type": "process", "command": ["/bin/false", "--no-such-process"]},
    "gpus": "all",
}


def arm(folder: Path, exporter: ExporterStandIn) -> Any:
    """All that may be allowed is."""
    return in_process(
        folder,
        mode="auto",
        allow=["service_restart", "service_stop", "gpu_reset"],
        services=[SERVICE],
        gpus={"control": "none", "inventory": "auto"},
        exporter={"url": exporter.url, "timeout": "20s"},
    )


@contextlib.contextmanager
def no_process() -> Iterator[None]:
    """Starting any process is a failure."""

    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        patch.setattr(runner, "run", refuse)
        patch.setattr(runner, "spawn_detached", refuse)
        yield


@pytest.fixture
def armed(tmp_path: Path, exporter: ExporterStandIn) -> Iterator[InProcess]:
    with no_process(), arm(tmp_path, exporter) as made:
        yield made


@dataclass(frozen=True)
class Told:
    """A remediator that was told everything and has decided, and what was said and shown of it."""

    made: InProcess
    asked: set[str]
    text_log: str
    json_log: str
    page_before: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with (
        contextlib.closing(ExporterStandIn()) as exporter,
        arm(tmp_path_factory.mktemp("hostile"), exporter) as made,
    ):
        page = made.client().get("/").text
        with no_process(), logged("text") as text, logged("json") as lines:
            every = hostile_alerts()
            assert made.deliver(*every).json == {"accepted": len(every), "episodes": len(every)}
            with made.store.reading() as tx:
                due = tx.episodes.due(made.clock.now())
            assert made.remediator.evaluator.pass_over(due) == (), "nothing of it may be ours"
        yield Told(made, set(exporter.asked), text.getvalue(), lines.getvalue(), page)


@contextlib.contextmanager
def logged(form: str) -> Iterator[io.StringIO]:
    """What the log's own handler writes."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        configure("info", form)
    root.handlers += before
    try:
        yield stream
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def hostile_alerts(texts: Sequence[str] = CORPUS) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        found += [
            alert("GPUTemperatureShutdown", uuid=text, gpu=text, instance=text),
            alert("LLMServiceDown", llm_service=text, instance=text),
            alert(text, uuid=text, llm_service=text),
        ]
    return found


def test_the_corpus_is_large_enough() -> None:
    assert len(set(CORPUS)) >= 500


def test_hostile_labels_choose_no_target_and_start_nothing(told: Told) -> None:
    with told.made.store.reading() as tx:
        reasons = {one.last_reason for one in tx.episodes.open_all()}
        assert tx.runs.latest(10) == ()
        assert tx.incidents.open_all() == ()
        assert tx.leases.open_all() == ()
        assert tx.verify_audit().broken_at is None
    assert reasons == {"ignore:not_in_inventory", "notify:no_playbook"}
    assert told.asked == {"GET /api/gpus"}, "no label became part of a request"


def test_hostile_labels_reach_no_series_and_no_page(told: Told) -> None:
    client = told.made.client()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    metrics = client.get("/metrics", headers=accept).text
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    received = families["remediator_alerts_received"].samples
    assert {sample.labels["alertname"] for sample in received} == {
        "GPUTemperatureShutdown",
        "LLMServiceDown",
        "other",
    }
    counted = told.made.remediator.counters.get("alerts")
    assert len(counted) == 3, "names that anybody may invent take no memory"
    assert MARK not in metrics
    assert families["remediator_paused"].samples[0].value == 0
    assert client.get("/").text == told.page_before


def test_hostile_labels_forge_no_line_of_the_log(told: Told) -> None:
    lines = told.text_log.splitlines()
    assert len(lines) > len(CORPUS)
    assert all(line == printable(line) for line in told.text_log.split("\n"))
    stamped = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 (info|warning) remediator\.[\w.]+ ")
    assert [line for line in lines if not stamped.match(line)] == []
    records = [json.loads(line) for line in told.json_log.split("\n") if line]
    assert len(records) == len(lines)
    assert {tuple(one) for one in records} == {("time", "level", "logger", "message")}
    assert told.json_log.isascii()


def test_hostile_labels_come_back_as_json_and_nothing_else(told: Told) -> None:
    found: set[str | None] = set()
    after = 0
    while True:
        reply = told.made.client("read").get(f"/api/v1/audit?limit=1000&after={after}")
        assert reply.content_type == "application/json"
        if not reply.json["records"]:
            break
        found |= {one["data"].get("labels", {}).get("instance") for one in reply.json["records"]}
        after = reply.json["records"][-1]["seq"]
    assert set(CORPUS) <= found, "what was said is kept as it was said"


_SMI = """#!/bin/sh
# Answers for one card; a limit that is set is the limit.
case "$*" in
*-pl*) for word; do last=$word; done; echo "$last" >"$0.limit" ;;
*) echo "$2, $(cat "$0.limit" 2>/dev/null || echo 400), 400.00, 100.00, 400.00" ;;
esac
"""


def acted_beside(folder: Path, exporter: ExporterStandIn, labels: dict[str, str]) -> list[Any]:
    """Argv, environment and directory of all that a run about our card starts, and its plan."""
    program = folder.parent / "nvidia-smi"
    program.write_text(_SMI)
    program.chmod(0o755)
    program.with_name("nvidia-smi.limit").unlink(missing_ok=True)
    started: list[Any] = []
    real = subprocess.Popen

    def recording(argv: list[str], **how: Any) -> Any:
        started.append((argv, how["env"], how["cwd"], how.get("shell", False)))
        if "-pl" in argv:
            # It cools at once: the run has nothing to wait for.
            exporter.gpu["temperature"] = 60.0
        return real(argv, **how)

    folder.mkdir()
    exporter.gpu["temperature"] = 84.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", recording)
        with in_process(
            folder,
            mode="auto",
            gpus={"control": "nvidia-smi", "nvidia_smi": str(program), "inventory": [GPU]},
            exporter={"url": exporter.url, "timeout": "20s"},
        ) as made:
            made.clock.seconds = time.time()
            made.deliver(alert(uuid=GPU, starts=START_NOW, **labels))
            made.decide_all()
            with made.store.reading() as tx:
                (run,) = tx.runs.latest(10)
            made.remediator.worker._executor.execute(run.id)
    assert run.target.key == f"gpu:{GPU}"
    return [run.plan, *started]


def test_hostile_labels_beside_a_real_target_change_no_argv_and_no_environment(
    tmp_path: Path, exporter: ExporterStandIn
) -> None:
    plain = acted_beside(tmp_path / "plain", exporter, {})
    assert any("-pl" in argv for argv, *_ in plain[1:]), "the card was capped"
    assert not any(shell for *_, shell in plain[1:])
    for first in range(0, len(CORPUS), 60):
        named = {f"l{n}": text for n, text in enumerate(CORPUS[first : first + 60])}
        assert acted_beside(tmp_path / f"hostile{first}", exporter, named) == plain


def test_labels_that_carry_the_key_of_the_other_kind_choose_nothing(
    armed: InProcess, exporter: ExporterStandIn
) -> None:
    """A service's name is no card, and a card is no service."""
    armed.deliver(
        alert("GPUTemperatureShutdown", llm_service="ollama"),
        alert("GPUTemperatureShutdown", uuid="ollama"),
        alert("LLMServiceDown", uuid=GPU),
        alert("LLMServiceDown", llm_service=GPU),
        alert("GPUTemperatureShutdown", gpu="0"),
        alert("GPUTemperatureShutdown", uuid=""),
        alert("GPUTemperatureShutdown", uuid=GPU.lower()),
        alert("LLMServiceDown", llm_service="Ollama"),
    )
    armed.decide_all()
    with armed.store.reading() as tx:
        assert {one.last_reason for one in tx.episodes.open_all()} == {"ignore:not_in_inventory"}
        assert tx.runs.latest(10) == ()


@pytest.mark.parametrize("name", ["uuid=", "a b", "$(x)", "ä", "1a", "", "a-b", "a\n"])
def test_a_label_name_that_is_none_is_refused(armed: InProcess, name: str) -> None:
    assert armed.deliver(alert(uuid=GPU, **{name: "x"})).status_code == 400


def test_plan_shows_hostile_labels_without_their_power(
    armed: InProcess, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    with contextlib.suppress(FileExistsError):
        (tmp_path / "state" / "audit.key").write_bytes(b"k" * 64)
    delivery = tmp_path / "delivery.json"
    delivery.write_text(json.dumps({"version": "4", "alerts": hostile_alerts(SOME)}))
    code, out, err = cli(
        "plan", f"--file={delivery}", f"--config.file={tmp_path / 'remediator.yml'}"
    )
    assert (code, err) == (0, "")
    assert all(line == printable(line) for line in out.split("\n"))
    assert out.count("decision: ignore (not_in_inventory)") == 2 * len(SOME)
    assert out.count("decision: notify (no_playbook)") == len(SOME)
