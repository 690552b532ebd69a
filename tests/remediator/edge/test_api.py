"""The HTTP side apart from the webhook: who may ask, what comes back, and what `/metrics` holds."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from remediator.store import Draft
from remediator.store.inventory import HOLDER, RESTARTING
from remediator.targets import Target
from tests.remediator.edge.support import (
    GPU,
    TOKENS,
    ExporterStandIn,
    InProcess,
    alert,
    in_process,
)

READS = (
    "/api/v1/runs",
    "/api/v1/runs/1",
    "/api/v1/audit",
    "/api/v1/services",
    "/api/v1/incidents",
    "/api/services/ai",
)
WRITES = (
    "/api/v1/runs/1/approve",
    "/api/v1/runs/1/deny",
    "/api/v1/pause",
    "/api/v1/resume",
    "/api/v1/undo",
    "/api/v1/incidents/1/acknowledge",
)
OPEN = ("/", "/style.css", "/metrics", "/-/healthy", "/-/ready")

# Every metric of the contract whose input this version has.
CONTRACT = (
    "remediator_build_info",
    "remediator_alerts_received_total",
    "remediator_decisions_total",
    "remediator_runs_total",
    "remediator_run_duration_seconds",
    "remediator_actions_total",
    "remediator_incident_state",
    "remediator_queue_depth",
    "remediator_queue_oldest_seconds",
    "remediator_breaker_open",
    "remediator_undo_leases",
    "remediator_audit_records_total",
    "remediator_last_delivery_timestamp_seconds",
    "llm_service_info",
    "llm_service_gpu_info",
    "llm_service_up",
    "llm_service_requests_running",
    "llm_service_requests_waiting",
    "llm_service_progress_total",
    "llm_service_model_memory_bytes",
    "llm_service_restarts_total",
)
SERVICE = {
    "name": "ollama",
    "driver": "ollama",
    "endpoint": "http://127.0.0.1:9",
    "manager": {"type": "process", "command": ["/bin/false", "--no-such-process"]},
    "gpus": [GPU],
}


@pytest.fixture
def full(tmp_path: Path, exporter: ExporterStandIn) -> Iterator[InProcess]:
    """With a service, a waiting run, an incident, a lease and an exporter that answers."""
    over: dict[str, Any] = {
        "services": [SERVICE],
        "exporter": {"url": exporter.url},
        "mode": "approve",
    }
    with in_process(tmp_path, **over) as made:
        made.deliver(alert())
        _fill(made)
        yield made


def _fill(made: InProcess) -> None:
    target, now = Target("gpu", GPU), made.clock.now()
    with made.store.transaction() as tx:
        run = tx.runs.create(
            episode_id=1,
            playbook="throttle-gpu",
            weight=10,
            trigger="GPUTemperatureWarning",
            target=target,
            locks=(target,),
            state="awaiting_approval",
            plan=[],
            now=now,
            expires_at=now + 900,
            boot_id="boot",
        )
        tx.approvals.ask(run.id, {}, {})
        tx.incidents.put(
            episode_id=1,
            trigger="GPUTemperatureWarning",
            target=target,
            playbook="throttle-gpu",
            state="needs_human",
            reason="attempts",
            last_step="cap_power",
            now=now,
        )
        tx.leases.take(
            uuid=GPU,
            knob="power_limit",
            control="none",
            original=400_000,
            value=320_000,
            run_id=run.id,
            now=now,
        )
        tx.audit(Draft("decision", "waits for a person", run=run.id, target=target.key))


def get(made: InProcess, path: str, role: str = "read") -> Any:
    reply = made.client(role).get(path)
    assert reply.status_code == 200, reply.data
    return reply.json


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    ("role", "status"), [(None, 401), ("webhook", 403), ("read", 200), ("operate", 200)]
)
def test_who_may_read(full: InProcess, path: str, role: str | None, status: int) -> None:
    reply = full.client(role).get(path)
    assert reply.status_code == status
    assert reply.is_json
    assert status == 200 or "read" in reply.json["error"]


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    ("role", "status"), [(None, 401), ("webhook", 403), ("read", 403), ("operate", 200)]
)
def test_who_may_operate(full: InProcess, path: str, role: str | None, status: int) -> None:
    with full.store.reading() as tx:
        before = tx.audit_count()
    sent: dict[str, Any] = {"all": True} if path.endswith("undo") else {}
    if path.endswith("approve"):
        with full.store.reading() as tx:
            sent = {"token": tx.approvals.get(1).token}
    reply = full.client(role).post(path, json=sent)
    assert reply.status_code == status
    with full.store.reading() as tx:
        assert (tx.audit_count() > before) == (status == 200), "what was done is audited"


@pytest.mark.parametrize("path", OPEN)
def test_what_is_open_needs_no_token(full: InProcess, path: str) -> None:
    assert full.client().get(path).status_code == 200


def test_without_configured_tokens_nobody_may(tmp_path: Path) -> None:
    with in_process(tmp_path, web={}) as made:
        for role in TOKENS:
            assert made.client(role).get("/api/v1/runs").status_code == 401
            assert made.client(role).post("/api/v1/alerts").status_code == 401
        empty = made.app.test_client().get("/api/v1/runs", headers={"Authorization": "Bearer "})
        assert empty.status_code == 401


def test_runs_newest_first_and_one_with_its_story(full: InProcess) -> None:
    (run,) = get(full, "/api/v1/runs")["runs"]
    assert (run["id"], run["playbook"], run["state"]) == (1, "throttle-gpu", "awaiting_approval")
    assert run["target"] == f"gpu:{GPU}"
    one = get(full, "/api/v1/runs/1")
    assert one["steps"] == []
    assert [record["sentence"] for record in one["audit"]] == ["waits for a person"]
    assert full.client("read").get("/api/v1/runs/2").status_code == 404


@pytest.mark.parametrize("path", ["/api/v1/runs/%s", "/api/v1/runs/-1", "/api/v1/runs/x"])
def test_a_run_that_cannot_be_is_404(full: InProcess, path: str) -> None:
    reply = full.client("read").get(path.replace("%s", "9" * 40))
    assert reply.status_code == 404
    assert reply.json["error"]


def test_the_audit_is_read_on_from_where_one_was(full: InProcess) -> None:
    with full.store.transaction() as tx:
        for number in range(5):
            tx.audit(Draft("note", f"note {number}"))
    every = get(full, "/api/v1/audit")["records"]
    assert [record["seq"] for record in every] == list(range(1, 8))
    assert {"seq", "mac", "time", "event", "sentence", "run", "data"} <= set(every[0])
    page = get(full, "/api/v1/audit?after=3&limit=2")["records"]
    assert [record["seq"] for record in page] == [4, 5]
    assert get(full, "/api/v1/audit?after=99999")["records"] == []
    assert len(get(full, "/api/v1/audit?limit=0")["records"]) == 1, "at least one"


@pytest.mark.parametrize(
    "query", ["after=x", "after=-1", "limit=1e3", "limit=", f"after={'9' * 30}"]
)
def test_a_number_that_is_none_is_400_and_named(full: InProcess, query: str) -> None:
    reply = full.client("read").get(f"/api/v1/audit?{query}")
    assert reply.status_code == 400
    assert query.partition("=")[0] in reply.json["error"]


def test_services_say_what_is_not_known_as_null(full: InProcess) -> None:
    (service,) = get(full, "/api/v1/services")["services"]
    assert (service["name"], service["driver"], service["manager"]) == (
        "ollama",
        "ollama",
        "process",
    )
    assert service["gpus"] == [GPU]
    assert service["up"] is None, "it was not probed yet"
    assert service["held_by"] is None


def test_incidents_and_leases(full: InProcess) -> None:
    found = get(full, "/api/v1/incidents")
    (incident,) = found["incidents"]
    assert (incident["state"], incident["target"]) == ("needs_human", f"gpu:{GPU}")
    (lease,) = found["leases"]
    assert (lease["original"], lease["value"], lease["undo_requested"]) == (400_000, 320_000, False)


def test_the_dashboards_summary(full: InProcess, exporter: ExporterStandIn) -> None:
    exporter.gpu["temperature"] = None
    found = get(full, "/api/services/ai")
    assert set(found) == {"llm", "embeddings", "gpu_available"}
    assert (found["embeddings"], found["gpu_available"]) == (None, True)
    assert found["llm"]["status"] == "unknown"
    assert found["llm"]["gpu_load"] == 20.0
    gpu = found["llm"]["gpu"]
    assert gpu == {
        "name": "NVIDIA Test",
        "temperature": None,
        "utilization": 20.0,
        "memory_used_mb": 1024,
        "memory_total_mb": 40960,
        "memory_percent": 2.5,
        "power_draw_w": 210.0,
        "health": "healthy",
        "error": "none",
        "error_message": "",
    }


def test_the_summary_without_an_exporter_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    with in_process(tmp_path, services=[SERVICE]) as made:
        found = get(made, "/api/services/ai")
    assert found["gpu_available"] is False
    assert found["llm"] == {"status": "unknown", "gpu_load": None, "gpu": None}


def test_pause_keeps_why_and_resume_ends_it(full: InProcess) -> None:
    operator = full.client("operate")
    assert operator.post("/api/v1/pause", json={"why": "new cooler"}).json == {
        "paused": "new cooler"
    }
    assert "remediator_paused 1.0" in full.client().get("/metrics").text
    assert operator.post("/api/v1/resume").json == {"paused": None}
    assert "remediator_paused 0.0" in full.client().get("/metrics").text


def test_a_pause_may_be_short_of_words_but_not_of_sense(full: InProcess) -> None:
    operator = full.client("operate")
    assert operator.post("/api/v1/pause").status_code == 200
    assert len(operator.post("/api/v1/pause", json={"why": "x" * 5000}).json["paused"]) == 200
    half = operator.post("/api/v1/pause", data=b'{"why": "\\ud800"}')
    assert (half.status_code, half.json["paused"]) == (200, "?")


def test_a_service_is_held_by_a_person_and_released(full: InProcess) -> None:
    operator = full.client("operate")
    first = operator.post("/api/v1/services/ollama/hold", json={"why": "new model"})
    assert first.json == {"service": "ollama", "held_by": "operator", "held_reason": "new model"}
    (service,) = get(full, "/api/v1/services")["services"]
    assert (service["held_by"], service["held_reason"]) == ("operator", "new model")
    assert operator.post("/api/v1/services/ollama/hold").json["held_reason"]
    assert operator.post("/api/v1/services/ollama/release").json["was_held"] is True
    assert operator.post("/api/v1/services/ollama/release").json["was_held"] is False
    with full.store.reading() as tx:
        said = [r.record for r in tx.audit_records() if r.record["event"] in ("held", "released")]
    assert [record["event"] for record in said] == ["held", "held", "released"]
    assert all(record["target"] == "service:ollama" for record in said)
    assert "new model" in said[0]["sentence"]


def test_a_release_leaves_a_restart_that_is_under_way(full: InProcess) -> None:
    with full.store.transaction() as tx:
        tx.inventory.hold("ollama", HOLDER, RESTARTING, full.clock.now())
    reply = full.client("operate").post("/api/v1/services/ollama/release")
    assert reply.json["was_held"] is False
    with full.store.reading() as tx:
        assert tx.inventory.service("ollama").restarting


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_only_a_configured_service_is_held_or_released(full: InProcess, verb: str) -> None:
    reply = full.client("operate").post(f"/api/v1/services/vllm/{verb}")
    assert (reply.status_code, "no service vllm" in reply.json["error"]) == (404, True)
    assert full.client("read").post(f"/api/v1/services/ollama/{verb}").status_code == 403
    with full.store.reading() as tx:
        assert tx.inventory.service("vllm").held_by is None


@pytest.mark.parametrize("path", ["/api/v1/pause", "/api/v1/undo", "/api/v1/services/ollama/hold"])
@pytest.mark.parametrize("data", [b"[1]", b'"x"', b"1", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_400(full: InProcess, path: str, data: bytes) -> None:
    reply = full.client("operate").post(path, data=data, content_type="application/json")
    assert (reply.status_code, "JSON" in reply.json["error"]) == (400, True)


def test_why_has_to_be_text(full: InProcess) -> None:
    assert full.client("operate").post("/api/v1/pause", json={"why": ["x"]}).status_code == 400


@pytest.mark.parametrize("body", [{}, {"all": False}, {"uuid": 5}, {"all": True, "uuid": GPU}])
def test_undo_never_guesses_which_card(full: InProcess, body: dict[str, Any]) -> None:
    reply = full.client("operate").post("/api/v1/undo", json=body)
    assert (reply.status_code, "which card" in reply.json["error"]) == (400, True)
    with full.store.reading() as tx:
        assert not tx.leases.open_all()[0].undo_requested


@pytest.mark.parametrize(
    ("body", "count"), [({"all": True}, 1), ({"uuid": GPU}, 1), ({"uuid": "GPU-x"}, 0)]
)
def test_undo_is_asked_for_and_audited(full: InProcess, body: dict[str, Any], count: int) -> None:
    reply = full.client("operate").post("/api/v1/undo", json=body)
    assert len(reply.json["requested"]) == count
    with full.store.reading() as tx:
        assert tx.leases.open_all()[0].undo_requested == bool(count)


def test_an_incident_is_acknowledged_once(full: InProcess) -> None:
    operator = full.client("operate")
    assert operator.post("/api/v1/incidents/1/acknowledge").json == {"acknowledged": 1}
    assert operator.post("/api/v1/incidents/1/acknowledge").status_code == 404
    assert get(full, "/api/v1/incidents")["incidents"] == []


def test_a_store_that_fails_is_503_and_says_so(full: InProcess) -> None:
    full.store._db.execute("PRAGMA query_only = ON")
    reply = full.client("operate").post("/api/v1/pause")
    assert (reply.status_code, "could not commit" in reply.json["error"]) == (503, True)
    assert "remediator_storage_failing 1.0" in full.client().get("/metrics").text
    assert full.client().get("/-/ready").status_code == 503
    full.store._db.execute("PRAGMA query_only = OFF")
    assert full.client().get("/-/ready").status_code == 200
    assert "remediator_storage_failing 0.0" in full.client().get("/metrics").text


def test_a_store_that_cannot_be_read_leaves_out_what_it_held(full: InProcess) -> None:
    full.store.close()
    text = full.client().get("/metrics").text
    assert "remediator_storage_failing 1.0" in text
    assert "remediator_queue_depth" not in text, "absent is not zero"
    assert full.client("read").get("/api/v1/runs").status_code == 503


def test_a_worker_that_does_not_move_is_not_healthy(full: InProcess) -> None:
    assert full.client().get("/-/healthy").status_code == 200
    full.clock.seconds += 60
    reply = full.client().get("/-/healthy")
    assert (reply.status_code, "60 s" in reply.text) == (503, True)


def test_while_it_stops_it_takes_nothing_in(full: InProcess) -> None:
    full.remediator.world.stopping.set()
    reply = full.deliver(alert(uuid="GPU-late"))
    assert (reply.status_code, "again" in reply.json["error"]) == (503, True)
    assert full.client().get("/-/ready").status_code == 503


@pytest.mark.parametrize("kind", ["application/openmetrics-text; version=1.0.0", "text/plain"])
def test_every_metric_of_the_contract_is_there(full: InProcess, kind: str) -> None:
    reply = full.client().get("/metrics", headers={"Accept": kind})
    assert reply.content_type.startswith(kind.partition(";")[0])
    parse = openmetrics if "openmetrics" in kind else classic
    names = {family.name for family in parse(reply.text)}
    missing = [name for name in CONTRACT if name.removesuffix("_total") not in names]
    assert missing == []


def test_metrics_are_packed_for_who_wants_it(full: InProcess) -> None:
    reply = full.client().get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert b"remediator_build_info" in gzip.decompress(reply.data)


def test_an_incident_is_a_series_with_nothing_but_known_values(full: InProcess) -> None:
    families = {family.name: family for family in classic(full.client().get("/metrics").text)}
    (sample,) = families["remediator_incident_state"].samples
    assert sample.value == 1
    assert sample.labels == {
        "trigger": "GPUTemperatureWarning",
        "uuid": GPU,
        "llm_service": "",
        "playbook": "throttle-gpu",
        "last_step": "cap_power",
        "reason": "attempts",
        "state": "needs_human",
    }


def test_counters_exist_before_their_first_event(full: InProcess) -> None:
    text = full.client().get("/metrics").text
    assert 'remediator_runs_total{outcome="failed",playbook="throttle-gpu"} 0.0' in text
    assert 'remediator_actions_total{action="restart_service",outcome="failed"} 0.0' in text


def test_the_page_needs_no_inline_code_and_says_so(full: InProcess) -> None:
    reply = full.client().get("/")
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script|<style|\son\w+=|style=|javascript:", reply.text, re.IGNORECASE)
    for link in re.findall(r'href="([^"]+)"', reply.text):
        assert link.startswith("/")
        assert full.client().get(link).status_code == 200
    assert full.client().get("/style.css").content_type.startswith("text/css")


@pytest.mark.parametrize("path", ["/", "/metrics", "/nothing", "/api/v1/runs"])
def test_no_answer_is_sniffed_cached_or_shared_with_other_origins(
    full: InProcess, path: str
) -> None:
    headers = full.client().get(path, headers={"Origin": "http://evil.invalid"}).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert not [name for name, _ in headers if name.startswith("Access-Control-")]
