"""The documents name everything there is: each key, flag, command, metric, reason, part and endpoint."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from werkzeug.routing import Rule

import exporter.config
import exporter.options
from exporter.catalogue import METRICS
from exporter.policy import GpuError, Health
from exporter.readings import CLOCK_DOMAINS, CLOCK_EVENT_REASONS, BackendReason, FaultReason
from exporter.web.app import ExporterApp
from remediator import actions, managers, playbooks, services, signals
from remediator.app import build, open_store, web_application
from remediator.cli import main as remediator_command
from remediator.cli.main import _parser as remediator_parser
from remediator.clock import SystemClock
from remediator.config import Config, load
from remediator.config.strict import Seconds
from remediator.durations import parse_duration
from remediator.helper.policy import Policy
from remediator.playbooks import PlaybookBlock, RungBlock
from remediator.policy.decision import GATE_REASONS, KINDS
from remediator.store.rows import OUTCOMES, IncidentState, RunState, StepState
from remediator.web.auth import Identities, Tokens
from simulator import faults

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ]
)
ROLES = ("webhook", "read", "operate")
TOKENS = {role: f"{role}-{'x' * 20}" for role in ROLES}
GLOBAL_FLAGS = ("-h", "--help", "--version")


def text(name: str) -> str:
    return (DOCS / name).read_text()


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", page, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    rest = page[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(page: str) -> dict[str, list[str]]:
    """The other cells of each table row, by the code or the text in its first one."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[cells[0].strip("`")] = cells[1:]
    return found


def codes(page: str) -> set[str]:
    """Everything in backticks outside of code blocks."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`]+)`", prose))


def keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, type and default of every key that a dataclass reads."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        path, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, path + ".")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield path, hint, default
        items = typing.get_args(hint)
        if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(items[0]):
            yield from keys(items[0], path + "[].")


def is_default(cell: str, hint: Any, default: Any) -> bool:
    """Whether a documented default is the one of the code."""
    said = cell.strip("`")
    if default is dataclasses.MISSING:
        return said == "required"
    if hint == Seconds:
        return parse_duration(said) == default
    if isinstance(default, float):
        return float(said) == default
    if default in ((), {}):
        return said == ("[]" if default == () else "{}")
    return said == {None: "none", "": "empty"}.get(default, str(default))


def wrong_keys(cls: Any, page: str, prefix: str = "") -> list[str]:
    table = rows(page)
    return [
        f"{path}: {table.get(path, ['is not documented'])[0]}"
        for path, hint, default in keys(cls, prefix)
        if path not in table or not is_default(table[path][0], hint, default)
    ]


def options(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """The flags of each command, by the words that call it."""
    found: dict[str, set[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                below = options(child)
                found |= {f"{name} {word}".strip(): flags for word, flags in below.items()}
    if not found:
        flags = {flag for action in parser._actions for flag in action.option_strings}
        found[""] = flags.difference(GLOBAL_FLAGS)
    return found


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """deploy/remediator.yml after the steps at its top, in a folder of the test."""
    for role, token in TOKENS.items():
        (tmp_path / f"{role}.token").write_text(token + "\n")
    raw = (ROOT / "deploy" / "remediator.yml").read_text()
    path = tmp_path / "remediator.yml"
    path.write_text(
        raw.replace("/etc/gpu-remediator/", f"{tmp_path}/")
        .replace("/var/lib/gpu-remediator", str(tmp_path / "state"))
        # Where the tests run there may be no systemd.
        .replace("type: systemd\n", "type: systemd\n      systemctl: /bin/true\n")
    )
    return path


@pytest.fixture
def application(shipped: Path) -> Iterator[Any]:
    """The remediator's HTTP side; nothing is started."""
    config = load(shipped)
    store = open_store(config, SystemClock())
    yield web_application(build(config, SystemClock(), store), Identities(Tokens(**TOKENS)))
    store.close()


def test_every_key_of_remediator_yml_is_there_with_its_default() -> None:
    assert wrong_keys(Config, text("configuration.md")) == []


def test_every_key_of_helper_yml_is_there_with_its_default() -> None:
    page = section(text("configuration.md"), "The helper's file")
    assert wrong_keys(Policy, page) == []


def test_every_key_of_a_playbook_is_there_with_its_default() -> None:
    page = section(text("playbooks.md"), "Changing them")
    assert wrong_keys(PlaybookBlock, page, "playbooks.<name>.") == []
    assert wrong_keys(RungBlock, page, "playbooks.<name>.rungs[].") == []


@pytest.mark.parametrize("kind", managers.names())
def test_every_key_of_a_manager_is_there_with_its_default(kind: str) -> None:
    page = text("configuration.md").partition(f"`services[].manager.type: {kind}`")[2]
    module = importlib.import_module(f"remediator.managers.{kind}")
    table = "\n".join(page.split("\n| key |", 1)[1].split("\n\n")[:1])
    assert wrong_keys(module.Options, table) == []


@pytest.mark.parametrize("kind", actions.names())
def test_every_action_is_there_with_its_parameters(kind: str) -> None:
    module = importlib.import_module(f"remediator.actions.{kind}")
    assert wrong_keys(module.Parameters, section(text("playbooks.md"), kind)) == []


@pytest.mark.parametrize("kind", signals.names())
def test_every_signal_is_there_with_its_parameters_and_reasons(kind: str) -> None:
    module = importlib.import_module(f"remediator.signals.{kind}")
    page = section(section(text("playbooks.md"), "Signals"), kind)
    assert wrong_keys(module.Parameters, page) == []
    made = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    reasons = {reason for cls in made for reason in getattr(cls, "reasons", ())}
    assert reasons
    assert reasons - codes(page) == set()


def test_every_shipped_playbook_is_there_with_its_alerts_and_weight() -> None:
    table = rows(text("playbooks.md"))
    for name, playbook in playbooks.load({}).by_name.items():
        alerts, target, *_, weight = table[name]
        assert (codes(alerts), target.lower(), int(weight)) == (
            set(playbook.alerts),
            ", ".join(playbook.targets),
            playbook.weight,
        )
        assert section(section(text("playbooks.md"), "The shipped ones"), name)


@pytest.mark.parametrize("name", services.names())
def test_every_service_driver_is_there(name: str) -> None:
    assert f"`{name}`" in rows(text("configuration.md"))["services[].driver"][1]


def gate_section() -> str:
    return section(text("safety.md"), "The gates")


def test_every_reason_and_state_is_there() -> None:
    gates = set().union(*(codes(f"`{name}`") for name in rows(gate_section())))
    assert gates == {*GATE_REASONS, "no_fresh_reading", "reason", "*the signal's*"}
    metrics = codes(text("metrics.md"))
    for values in (KINDS, OUTCOMES, typing.get_args(IncidentState)):
        assert set(values) - metrics == set()
    assert set(typing.get_args(StepState)) - metrics == {"intended"}
    outcomes = set(typing.get_args(RunState)) & set(OUTCOMES)
    assert outcomes <= set(rows(section(text("playbooks.md"), "How a run goes")))


def test_every_event_of_the_audit_is_there() -> None:
    listed = {
        name for key in rows(section(text("safety.md"), "Events")) for name in key.split("`, `")
    }
    written = re.findall(
        r"\bDraft\(\s*\"(\w+)\"",
        "".join(p.read_text() for p in (ROOT / "remediator").rglob("*.py")),
    )
    assert len(written) > 20
    assert not set(written) - listed


def test_the_exporters_defaults_are_those_of_the_document() -> None:
    page = section(text("configuration.md"), "The exporter's file")
    defaults, overrides = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    )
    assert exporter.config.parse(defaults) == exporter.config.Config()
    assert len(exporter.config.parse(overrides).policy.overrides) == 2


def test_every_key_of_the_exporters_file_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    original = exporter.config._Section.__init__

    def remember(self: Any, value: Any, path: str, names: tuple[str, ...]) -> None:
        known.update(names)
        original(self, value, path, names)

    monkeypatch.setattr(exporter.config._Section, "__init__", remember)
    exporter.config.parse({"overrides": [{"uuid": "GPU-1"}]})
    page = section(text("configuration.md"), "The exporter's file")
    assert {"thresholds", "budget_gib", "model"} <= known
    assert {key for key in known if not re.search(rf"\b{key}\b", page)} == set()


@pytest.mark.parametrize(
    ("program", "parser"),
    [
        ("gpu-exporter", exporter.options._parser({})),
        ("gpu-remediator", remediator_parser()),
    ],
)
def test_every_command_and_flag_is_there(program: str, parser: argparse.ArgumentParser) -> None:
    commands = section(text("commands.md"), program)
    flags = section(section(text("configuration.md"), "Flags"), program)
    documented = codes(commands)
    prefix = program.replace("-", "_").upper() + "_"
    for command, known in options(parser).items():
        assert any(name.startswith(f"{program} {command}") for name in documented), command
        for flag in known:
            if f"`{flag}`" in flags:
                variable = prefix + flag.lstrip("-").replace(".", "_").replace("-", "_").upper()
                assert rows(flags)[flag][0] == f"`{variable}`"
            else:
                assert flag in " ".join(codes(rows_of(commands, f"{program} {command}")))


def rows_of(page: str, start: str) -> str:
    return "\n".join(line for line in page.splitlines() if line.startswith(f"| `{start}"))


def test_the_exporters_metrics_are_those_of_the_catalogue() -> None:
    table = section(text("metrics.md"), "gpu-exporter").split("Label values:")[0]
    documented = {name: cells for name, cells in rows(table).items() if name in METRICS}
    right = {
        metric.name: [
            metric.kind.value,
            ", ".join(f"`{label}`" for label in metric.label_names),
            metric.help,
        ]
        for metric in METRICS.values()
    }
    assert documented == right
    assert set(rows(table)) - set(METRICS) == {"metric"}


def test_every_label_value_of_the_exporter_is_there() -> None:
    metrics, api = codes(text("metrics.md")), codes(text("http-api.md"))
    for values in (FaultReason, BackendReason, CLOCK_DOMAINS, CLOCK_EVENT_REASONS):
        assert {str(value) for value in values} - metrics == set()
    for values in (Health, GpuError, FaultReason):
        assert {str(value) for value in values} - api == set()


def test_the_remediators_metrics_are_those_it_serves(application: Any) -> None:
    served = {}
    for family in application.extensions["deps"].registry.collect():
        if not family.name.startswith("process_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            served[name] = (family.type, getattr(family, "_labelnames", None))
    table = rows(section(text("metrics.md"), "gpu-remediator"))
    documented = {name: cells for name, cells in table.items() if name != "metric"}
    assert set(documented) == set(served)
    for name, (kind, labels) in served.items():
        assert documented[name][0] == kind
        if labels is not None:
            assert codes(documented[name][1]) == set(labels)


def test_the_exporters_endpoints_are_those_it_serves() -> None:
    named = {"/api/gpu/<uuid or index>", "/api/gpu/<uuid or index>/history"}
    served = {f"GET {path}" for path in set(ExporterApp(None, None)._routes) | named}  # type: ignore[arg-type]
    table = rows(section(text("http-api.md"), "gpu-exporter"))
    assert {name for name in table if name.startswith("GET ")} == served


def test_the_remediators_endpoints_ask_for_the_role_that_is_documented(application: Any) -> None:
    documented = {
        name: cells[0]
        for name, cells in rows(section(text("http-api.md"), "gpu-remediator")).items()
        if name.startswith(("GET ", "POST "))
    }
    client = application.test_client()
    served = {}
    for rule in application.url_map.iter_rules():
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            served[f"{method} {re.sub(r'<[^>]*>', '<id>', rule.rule)}"] = role_of(
                client, method, rule
            )
    assert served == documented


def role_of(client: Any, method: str, rule: Rule) -> str:
    """The least role that an endpoint lets in, by asking it."""
    path = re.sub(r"<[^>]*>", "1", rule.rule)

    def status(role: str | None) -> int:
        headers = {"Authorization": f"Bearer {TOKENS[role]}"} if role else {}
        return int(client.open(path, method=method, headers=headers, json={}).status_code)

    if status(None) != 401:
        return "open"
    return next(role for role in ROLES if status(role) not in (401, 403))


@pytest.mark.parametrize("kind", sorted(faults._READERS))
def test_every_simulated_fault_is_there(kind: str) -> None:
    assert kind in rows(section(text("architecture.md"), "The simulator"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors that a forge gives to headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    page = (ROOT / name).read_text()
    named = set(re.findall(r"(?:^|`|=\w+ )make ([a-z0-9-]+)", page, re.MULTILINE))
    assert {"up", "test"} <= named
    assert named - targets == set()


@pytest.fixture
def check_config(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """`gpu-remediator check-config`, which here leaves the test run's own logging alone."""
    monkeypatch.setattr("remediator.log.configure", lambda *_: None)
    return lambda path: remediator_command(["check-config", f"--config.file={path}"])


def test_the_shipped_example_is_what_check_config_accepts(
    shipped: Path, check_config: Callable[[Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_config(shipped) == 0
    said = capsys.readouterr().out
    assert "mode auto; allowed: service_restart, service_stop" in said
    refused = [line.strip() for line in said.splitlines() if "refused" in line]
    assert refused == ["rung 1: reset_gpu is refused: allow lacks gpu_reset"]


def test_the_configuration_in_the_documents_is_accepted(
    shipped: Path, check_config: Callable[[Path], int]
) -> None:
    blocks = [
        block
        for name in ("configuration.md", "playbooks.md")
        for block in re.findall(r"```yaml\n(playbooks:.*?)```", text(name), re.DOTALL)
    ]
    assert len(blocks) == 3
    example = shipped.read_text()
    for block in blocks:
        shipped.write_text(example + "\n" + block)
        assert check_config(shipped) == 0
