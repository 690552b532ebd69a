"""`check`: its first line says whether anything would be done; a service held down is no fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from remediator.alertmanager import Alert
from remediator.engine.gathering import BREAKER, PAUSED
from remediator.store import Draft, Store
from remediator.store.inventory import HOLDER, OPERATOR, RESTARTING
from remediator.targets import Target
from tests.remediator.edge.support import GPU, SERVICE, ExporterStandIn, write_config

Cli = Callable[..., tuple[int, str, str]]
OTHER = GPU.replace("1", "2")


@pytest.mark.parametrize(
    ("metas", "code", "first"),
    [
        ({}, 0, "mode observe"),
        (
            {PAUSED: "a new cooler"},
            1,
            "mode observe; PAUSED (a new cooler); `gpu-remediator resume` ends that",
        ),
        (
            {BREAKER: "3 runs failed"},
            2,
            "mode observe; breaker OPEN (3 runs failed); `gpu-remediator resume` ends that",
        ),
        (
            {PAUSED: "\x1b[2Jhidden", BREAKER: "3 runs failed"},
            2,
            "mode observe; PAUSED (\\x1b[2Jhidden); breaker OPEN (3 runs failed); "
            "`gpu-remediator resume` ends that",
        ),
    ],
)
def test_what_keeps_everything_back_is_the_first_line(
    cli: Cli,
    tmp_path: Path,
    store: Store,
    exporter: ExporterStandIn,
    metas: dict[str, str],
    code: int,
    first: str,
) -> None:
    config = write_config(tmp_path, exporter={"url": exporter.url})
    with store.transaction() as tx:
        for name, why in metas.items():
            tx.set_meta(name, why)
    found, out, _ = cli("check", f"--config.file={config}")
    assert (found, out.splitlines()[0]) == (code, first)


def test_a_playbook_with_a_mode_of_its_own_is_named(
    cli: Cli, tmp_path: Path, store: Store, exporter: ExporterStandIn
) -> None:
    config = write_config(
        tmp_path, exporter={"url": exporter.url}, playbooks={"throttle-gpu": {"mode": "auto"}}
    )
    _, out, _ = cli("check", f"--config.file={config}")
    assert out.splitlines()[0] == "mode observe (throttle-gpu: auto)"


def test_a_service_that_is_held_is_down_on_purpose(cli: Cli, config: Path, store: Store) -> None:
    with store.transaction() as tx:
        tx.inventory.hold("ollama", OPERATOR, "new model", 0.0)
    code, out, _ = cli("check", f"--config.file={config}")
    assert code == 0
    assert "service ollama: held by operator (new model), refused" in out


def test_a_service_that_only_restarts_is_still_down(cli: Cli, config: Path, store: Store) -> None:
    with store.transaction() as tx:
        tx.inventory.hold("ollama", HOLDER, RESTARTING, 0.0)
    code, out, _ = cli("check", f"--config.file={config}")
    assert (code, "held" in out) == (2, False)


NOW = 1_763_760_000.0
OLLAMA = Target("service", "ollama")


def incident(store: Store, *, state: str = "needs_human", reason: str = "out_of_memory") -> None:
    alert = Alert("f" * 16, "firing", {"alertname": "LLMServiceDown"}, {}, NOW, None)
    with store.transaction() as tx:
        tx.incidents.put(
            episode_id=tx.episodes.open(alert, 1, NOW).id,
            trigger="LLMServiceDown",
            target=OLLAMA,
            playbook="recover-oom",
            state=state,  # type: ignore[arg-type]
            reason=reason,
            last_step="load_models",
            now=NOW,
        )


def failed_run(store: Store, sentence: str) -> None:
    """One that restarted the service and could not load its model."""
    with store.transaction() as tx:
        run = tx.runs.create(
            episode_id=1,
            playbook="recover-oom",
            weight=50,
            trigger="LLMServiceDown",
            target=OLLAMA,
            locks=(),
            state="running",
            plan=[],
            now=NOW - 1,
            expires_at=None,
            boot_id="",
        )
        assert run is not None
        steps = (
            ("restart_service", "done", "ollama runs again"),
            ("load_models", "failed", sentence),
        )
        for seq, (action, state, said) in enumerate(steps):
            tx.runs.intend(
                run.id,
                seq,
                rung=0,
                action=action,
                gpu=None,
                service="ollama",
                intent={},
                sentence="",
                now=NOW,
                boot_id="",
            )
            tx.runs.finish_step(run.id, seq, state, {}, said, NOW)  # type: ignore[arg-type]
        tx.runs.end(run.id, "failed", "out_of_memory", sentence, NOW)


def told(out: str) -> list[str]:
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("incident"))
    return lines[start:]


def test_an_incident_says_what_was_tried_and_how_it_is_closed(
    cli: Cli, config: Path, store: Store
) -> None:
    incident(store)
    failed_run(store, "load_models failed: CUDA error: out of memory")
    code, out, _ = cli("check", f"--config.file={config}")
    first, *rest = told(out)
    assert code == 2
    assert first.startswith(
        "incident 1: LLMServiceDown on ollama: needs_human (out_of_memory), open"
    )
    assert rest == [
        "  run 1, recover-oom, failed: load_models failed: CUDA error: out of memory",
        "    restart_service: ollama runs again",
        "    load_models: FAILED: load_models failed: CUDA error: out of memory",
        "  once it is mended: gpu-remediator acknowledge 1",
    ]


def test_what_was_tried_cannot_forge_a_line(cli: Cli, config: Path, store: Store) -> None:
    incident(store)
    failed_run(store, "boom\nincident 9: all is well \x1b[2J")
    _, out, _ = cli("check", f"--config.file={config}")
    assert len(told(out)) == 5
    assert "\x1b" not in out


def test_an_incident_without_a_run_says_what_was_decided(
    cli: Cli, config: Path, store: Store
) -> None:
    incident(store, reason="not_allowed")
    with store.transaction() as tx:
        for episode, why in ((1, "service_restart is not in allow"), (None, "another alert")):
            tx.audit(Draft("decision", why, episode=episode, reason="not_allowed"))
    _, out, _ = cli("check", f"--config.file={config}")
    assert told(out)[1:] == [
        "  nothing was tried: service_restart is not in allow",
        "  once it is mended: gpu-remediator acknowledge 1",
    ]


def test_a_run_that_waits_for_a_person_says_how_it_is_answered(
    cli: Cli, config: Path, store: Store
) -> None:
    now = time.time()
    firing = Alert("f" * 16, "firing", {"alertname": "GPUMemoryWarning"}, {}, now, None)
    with store.transaction() as tx:
        run = tx.runs.create(
            episode_id=tx.episodes.open(firing, 1, now).id,
            playbook="clear-cache",
            weight=5,
            trigger="GPUMemoryWarning",
            target=Target("gpu", GPU),
            locks=(),
            state="awaiting_approval",
            plan=[],
            now=now,
            expires_at=now + 900,
            boot_id="",
        )
        assert run is not None
    code, out, _ = cli("check", f"--config.file={config}")
    assert f"  gpu-remediator approve {run.id}, or deny {run.id}; it is refused in 1" in out
    assert code != 0


def test_a_card_that_a_service_is_to_use_and_nobody_reports_is_critical(
    cli: Cli, tmp_path: Path, store: Store, exporter: ExporterStandIn
) -> None:
    services = [{**SERVICE, "gpus": [GPU, OTHER]}]
    path = write_config(tmp_path, exporter={"url": exporter.url}, services=services)
    code, out, _ = cli("check", f"--config.file={path}")
    said = [line for line in out.splitlines() if "does not report" in line]
    assert code == 2
    assert [line.split(",")[0] for line in said] == [f"service ollama is to use {OTHER}"]


def test_a_card_that_is_not_well_says_why(
    cli: Cli, config: Path, store: Store, exporter: ExporterStandIn
) -> None:
    exporter.gpu.update(health="critical", error_message="the driver asks\nfor a reset")
    code, out, _ = cli("check", f"--config.file={config}")
    (line,) = (line for line in out.splitlines() if line.startswith("GPU "))
    assert code == 2
    assert line.endswith(": the driver asks\\nfor a reset")


def test_a_lost_card_has_no_reading(
    cli: Cli, config: Path, store: Store, exporter: ExporterStandIn
) -> None:
    nothing = {"temperature": None, "utilization": None, "power": None}
    exporter.gpu.update(nothing, up=False, fault="lost", health="critical")
    code, out, _ = cli("check", f"--config.file={config}")
    (line,) = (line for line in out.splitlines() if line.startswith("GPU "))
    assert (code, line.endswith("critical, fault lost, no reading")) == (2, True)


def fires(store: Store, name: str, **labels: str) -> int:
    """An open episode of this alert."""
    labels = {"alertname": name, "severity": "critical", **labels}
    with store.transaction() as tx:
        alert = Alert(f"{name:f<16}"[:16], "firing", labels, {}, NOW, None)
        return tx.episodes.open(alert, 1, NOW).id


def test_an_alert_that_fires_without_an_incident_says_what_was_decided(
    cli: Cli, config: Path, store: Store
) -> None:
    host = fires(store, "HostMemoryPressure")
    hang = fires(store, "GPUHang", uuid=f"{GPU}\nforged")
    fires(store, "GPULost")
    fires(store, "Watchdog", severity="none")
    with store.transaction() as tx:
        tx.audit(Draft("decision", "clear-cache acts", episode=host))
        tx.audit(Draft("decision", "recover-hang waits: suspect", episode=hang))
        tx.audit(Draft("run_finished", "ineffective: it did not help", episode=host))
        tx.audit(Draft("alert_received", "it fires", episode=hang))
    _, out, _ = cli("check", f"--config.file={config}")
    said = [line for line in out.splitlines() if line.startswith("alert ")]
    assert [line.partition(", for ")[0] for line in said] == [
        "alert HostMemoryPressure on this machine",
        f"alert GPUHang on {GPU}\\nforged",
        "alert GPULost on this machine",
    ]
    assert said[0].endswith(": ineffective: it did not help")
    assert said[1].endswith(": recover-hang waits: suspect")
    assert said[2].endswith(": not decided yet")


def test_a_question_that_was_denied_is_no_question_any_more(
    cli: Cli, config: Path, store: Store
) -> None:
    down = fires(store, "LLMServiceDown", llm_service="ollama")
    with store.transaction() as tx:
        tx.audit(Draft("decision", "recover-oom asks for approval", episode=down))
        tx.audit(Draft("denied", "run 2 (recover-oom) was denied", episode=down))
    _, out, _ = cli("check", f"--config.file={config}")
    (said,) = [line for line in out.splitlines() if line.startswith("alert ")]
    assert said.endswith(": run 2 (recover-oom) was denied")


def test_an_alert_that_is_an_incident_is_told_once(cli: Cli, config: Path, store: Store) -> None:
    incident(store)
    _, out, _ = cli("check", f"--config.file={config}")
    assert "incident 1: LLMServiceDown" in out
    assert "alert LLMServiceDown" not in out


def test_what_is_being_mended_asks_for_nobody(cli: Cli, config: Path, store: Store) -> None:
    incident(store, state="recovering", reason="accepted")
    _, out, _ = cli("check", f"--config.file={config}")
    assert "acknowledge" not in out
