"""`plan` and `check-config` say what `allow` refuses, rung by rung, and which names are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.remediator.edge.support import GPU, SERVICE, ExporterStandIn, write_config

Cli = Callable[..., tuple[int, str, str]]


def test_only_the_rung_that_allow_refuses_is_called_refused(
    cli: Cli, tmp_path: Path, exporter: ExporterStandIn
) -> None:
    flag = f"--config.file={write_config(tmp_path, services=[SERVICE], mode='auto')}"
    code, out, _ = cli("check-config", flag)
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  cool-down [auto]"))
    assert code == 0
    assert "refused" not in lines[at]
    assert lines[at + 1] == "    rung 2: restart_service is refused: allow lacks service_restart"
    assert not any("rung 1" in line for line in lines[at : at + 2])


def test_plan_marks_the_steps_that_allow_refuses(
    cli: Cli, tmp_path: Path, exporter: ExporterStandIn
) -> None:
    exporter.gpu["temperature"] = 86.0
    config = write_config(
        tmp_path,
        mode="auto",
        services=[SERVICE],
        exporter={"url": exporter.url},
        gpus={"control": "simulated", "simulator_url": exporter.url, "inventory": [GPU]},
    )
    alert = ("--alert=GPUTemperatureCritical", f"--uuid={GPU}")
    code, out, _ = cli("plan", *alert, f"--config.file={config}")
    first, *later = [line for line in out.splitlines() if ". rung " in line]
    assert code == 0
    assert "refused" not in first
    assert len(later) == 4
    assert all(line.endswith("[refused: allow lacks service_restart]") for line in later)


def test_plan_names_the_known_cards_and_services(cli: Cli, config: Path) -> None:
    flag = f"--config.file={config}"
    code, out, _ = cli("plan", "--alert=GPUTemperatureWarning", "--uuid=GPU-2222", flag)
    assert (code, f"known GPUs: {GPU}" in out.splitlines()) == (1, True)
    code, out, _ = cli("plan", "--alert=LLMServiceDown", "--service=olama", flag)
    assert (code, "known services: ollama" in out.splitlines()) == (1, True)
    code, out, _ = cli("plan", "--alert=GPUTemperatureWarning", f"--uuid={GPU}", flag)
    assert (code, "known GPUs" in out) == (0, False)


def test_plan_of_an_alert_that_no_playbook_answers_names_those_that_one_does(
    cli: Cli, config: Path
) -> None:
    code, out, _ = cli(
        "plan", "--alert=LLMServiceDwn", "--service=ollama", f"--config.file={config}"
    )
    assert code == 1
    (known,) = [line for line in out.splitlines() if line.startswith("alerts with a playbook: ")]
    assert "LLMServiceDown" in known


def test_plan_knows_the_cards_that_the_exporter_reports(
    cli: Cli, tmp_path: Path, exporter: ExporterStandIn
) -> None:
    config = write_config(
        tmp_path, exporter={"url": exporter.url}, gpus={"control": "none", "inventory": "auto"}
    )
    alert = ("--alert=GPUTemperatureWarning", "--uuid=GPU-x")
    _, out, _ = cli("plan", *alert, f"--config.file={config}")
    assert f"known GPUs: {GPU}" in out.splitlines()


def test_a_plan_for_an_alert_that_names_nothing_is_about_this_machine(
    cli: Cli, tmp_path: Path, exporter: ExporterStandIn
) -> None:
    config = write_config(tmp_path, services=[SERVICE], exporter={"url": exporter.url})
    code, out, _ = cli("plan", "--alert=HostMemoryPressure", f"--config.file={config}")
    assert code == 0
    assert "clear-cache on host:local" in out
