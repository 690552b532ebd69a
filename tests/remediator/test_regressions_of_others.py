"""The bugs of other programs of this kind that are named in docs/reliability.md, each with its tests.

Those that no other test of ours shows stand here, with the name of where they were found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remediator import actions
from remediator.config import Config
from remediator.config.strict import build
from remediator.errors import ConfigError
from remediator.playbooks import load
from remediator.services import ServiceProbe
from tests.remediator.engine.bench import Bench
from tests.remediator.engine.benches import benches

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Bench]
CRITICAL, DOWN = "GPUTemperatureCritical", "LLMServiceDown"

# Each that the safety model names; a row of the page may hold several.
KNOWN = (
    *("#1280", "#121", "#1543", "#1536", "#1808", "#1513", "#1534", "#1416", "#695", "#1427"),
    *("#911", "#1748", "#1690", "PR #1243", "#1691", "#1692", "PR #1240", "ADR-039", "ADR-006"),
    *("gpu_reset.sh", "NVSentinel audit", "Robusta task_queue", "Robusta dedup key", "#345"),
    *("#2174", "kubectl_command", "in the request", "CommonLabels", ", max", "SIGKILL"),
    *("no limits", "prometheus-am-executor #32", "#4716", "#4503", "#5885", "#4524", "#6531"),
    *("bash_provider", "#5038", "#1549", "#2839", "#4205", "Ansible EDA", "#54", "#89", "#116"),
    *("#17,", "#27", "pfnet #31", "#391", "#431", "obalouchi1", "Alert_Fix", "Diskerase"),
    *("dcgm-exporter #84", "#1142", "#1229", "ollama #5642", "#1259", "gpud exporter", "#1545"),
)


def rows() -> Iterator[tuple[str, list[str]]]:
    page = (ROOT / "docs" / "reliability.md").read_text()
    _, _, rest = page.partition("## Regressions of others\n")
    for line in rest.partition("\n## ")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| where"):
            where, *_, tests = (cell.strip() for cell in line.strip("|").split("|"))
            yield where, re.findall(r"`([^`]+)`", tests)


def test_every_bug_that_is_known_has_its_row() -> None:
    named = " | ".join(where for where, _ in rows())
    assert [bug for bug in KNOWN if bug not in named] == []


@pytest.mark.parametrize(("where", "tests"), [*rows()], ids=[where for where, _ in rows()])
def test_its_tests_are_there(where: str, tests: list[str]) -> None:
    assert tests, where
    for test in tests:
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{where}: {test}"


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Make]:
    with benches(tmp_path, Bench) as make:
        yield make


def test_nvsentinel_121_what_a_person_stopped_goes_on_to_no_later_rung(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.card.heat_by_power(full=86.0, capped=86.0)
    bench.fire(CRITICAL)
    bench.clock.at(30, bench.config.kill_switch.touch)
    bench.act()
    assert bench.run.state in ("cancelled", "ineffective")
    bench.config.kill_switch.unlink()
    bench.pass_time(300, step=5)
    assert bench.managers["ollama"].calls == [], "nothing heavier began then or later"
    assert len(bench.runs) == 1


def test_robusta_345_a_resolved_alert_acts_on_nothing(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(60)
    bench.resolve(DOWN, service="ollama")
    bench.pass_time(60)
    assert (bench.runs, bench.managers["ollama"].calls) == ([], [])


def test_am_executor_fifteen_repeats_of_what_fails_act_once(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.drivers["ollama"].forced = ServiceProbe("refused", "refused")
    bench.managers["ollama"].die()
    for _ in range(15):
        bench.fire(DOWN, service="ollama")
        bench.pass_time(20)
    assert bench.run.state in ("failed", "ineffective")
    assert bench.managers["ollama"].calls == ["start 1002"]


def test_am_executor_max_one_target_is_reserved_once(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.fire("LLMServiceOutOfMemory", service="ollama")
    bench.pass_time(3)
    considered = [bench.evaluator.evaluate(number) for number in (1, 2)]
    assert len([run for run in considered if run is not None]) <= 1
    assert len([run for run in bench.runs if run.ended_at is None]) <= 1


def test_am_executor_sigkill_a_resolved_alert_breaks_off_nothing_that_has_begun(
    make_bench: Make,
) -> None:
    bench = make_bench(services=("ollama",))
    bench.managers["ollama"].die()
    bench.fire(DOWN, service="ollama")
    bench.drivers["ollama"].when_loaded = lambda _: bench.resolve(DOWN, service="ollama")
    with bench.store.transaction() as tx:
        tx.inventory.remember_models("ollama", ("llama3.2:3b",))
    bench.pass_time(60)
    assert bench.run.state == "succeeded"
    assert bench.managers["ollama"].calls == ["start 1002"]
    assert bench.drivers["ollama"].canaries, "it was carried on to its end"


def test_alert_fix_there_are_no_actions_but_those_that_are_shipped() -> None:
    for kind in ("shell", "bash", "run_command", "exec", "http", "script"):
        assert kind not in actions.names()
        with pytest.raises(ConfigError):
            actions.create({"action": kind, "command": ["/bin/true"]}, "a test")
    step = {"action": "restart_service", "command": "reboot"}
    with pytest.raises(ConfigError, match="unknown key"):
        actions.create(step, "a test")


def test_diskerase_no_cards_means_none_and_never_all(make_bench: Make) -> None:
    bench = make_bench(services=("ollama",))
    config = build(Config, {"state_dir": "/nowhere", "gpus": {"inventory": []}}, "")
    assert config.gpus.inventory == ()
    service = {"name": "x", "driver": "ollama", "endpoint": "http://127.0.0.1:1", "manager": {}}
    (one,) = build(Config, {"state_dir": "/nowhere", "services": [service]}, "").services
    assert one.gpus == ()
    assert bench.world.services_on("") == bench.world.services_on("GPU-any"), "all is said as all"
    with pytest.raises(ConfigError, match="empty"):
        load({"cool-down": {"target": []}})
