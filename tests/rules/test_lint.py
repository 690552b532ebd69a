"""What every rule must have, whatever it says."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from exporter import xids
from tests.rules import metric_names, shipped

RUNBOOK_URL = "https://github.com/gpu-remediator/gpu-remediator/blob/main/docs/runbooks/{}.md"
RUNBOOK_SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation", "Automatic action"]
BRIDGE_SECONDS = 15

# The contract: severity, remediate, page.
LABELS = {
    "GPUTemperatureWarning": {("warning", "true", "never")},
    "GPUTemperatureCritical": {("critical", "true", "unfixed")},
    "GPUTemperatureShutdown": {("critical", "true", "now")},
    "GPUMemoryWarning": {("warning", "true", "never")},
    "GPUMemoryCritical": {("critical", "true", "unfixed")},
    "GPUMemoryMax": {("critical", "true", "unfixed")},
    "GPUHang": {("warning", "true", "never")},
    "GPULost": {("critical", "true", "now")},
    "GPUFault": {("critical", "true", "now"), ("critical", "false", "now")},
    "GPUMissing": {("critical", "false", "now")},
    "GPURecoveryActionRequired": {("critical", "true", "now")},
    "GPUXidCritical": {("critical", "true", "now")},
    "GPURowRemapFailure": {("critical", "false", "now")},
    "GPUEccUncorrectable": {("critical", "false", "unfixed")},
    "GPUThermalThrottling": {("warning", "false", "never")},
    "GPUPowerBrake": {("warning", "false", "never")},
    "LLMServiceDown": {("critical", "true", "unfixed")},
    "LLMServiceStalled": {("critical", "true", "unfixed")},
    "LLMServiceOutOfMemory": {("critical", "true", "unfixed")},
    "LLMServiceLoading": {("critical", "false", "unfixed")},
    "LLMServiceGpusOvercommitted": {("warning", "false", "never")},
    "LLMServiceDegraded": {("warning", "false", "never")},
    "LLMServiceLogErrors": {("warning", "false", "never")},
    "HostMemoryWarning": {("warning", "true", "never")},
    "HostMemoryPressure": {("warning", "true", "never")},
    "HostMemoryCritical": {("critical", "true", "unfixed")},
    "HostDiskSpaceLow": {("warning", "false", "unfixed")},
    "GPUExporterDown": {("critical", "false", "now")},
    "GPUExporterStale": {("critical", "false", "now")},
    "GPUPolicyMissing": {("warning", "false", "never")},
    "RemediatorAuditAnchorFailing": {("critical", "false", "now")},
    "ConfigReloadFailed": {("warning", "false", "never")},
    "WebCertificateExpiresSoon": {("warning", "false", "never")},
    "WebCertificateExpires": {("critical", "false", "now")},
    "RemediatorDown": {("critical", "false", "now")},
    "RemediatorNotReceiving": {("critical", "false", "now")},
    "RemediatorStorageFailing": {("critical", "false", "now")},
    "RemediationFailed": {("critical", "false", "now")},
    "RemediationUndoOverdue": {("critical", "false", "now")},
    "RemediationBreakerOpen": {("critical", "false", "now")},
    "IncidentUnresolved": {("critical", "false", "now")},
    "Watchdog": {("none", "false", "never")},
}

every_alert = pytest.mark.parametrize("alert", shipped.alerts(), ids=lambda rule: rule["alert"])
every_name = pytest.mark.parametrize("name", shipped.alert_names())
every_rule = pytest.mark.parametrize(
    "rule", shipped.rules(), ids=lambda rule: rule.get("alert") or rule["record"]
)


def test_prometheus_accepts_the_rules_without_a_complaint(binaries):
    done = shipped.run(binaries.promtool, "check", "rules", "--lint-fatal", shipped.RULES)
    assert done.status == 0, done.output


def test_prometheus_accepts_the_configuration(binaries):
    done = shipped.run(binaries.promtool, "check", "config", shipped.PROMETHEUS)
    assert done.status == 0, done.output


def test_configuration_loads_the_rules_under_the_jobs_that_they_name():
    config = shipped.load(shipped.PROMETHEUS)
    assert config["rule_files"] == [shipped.RULES.name]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    named = set(re.findall(r'job="([^"]+)"', shipped.RULES.read_text()))
    assert named
    assert named <= jobs


def test_labels_are_those_of_the_contract():
    found = defaultdict(set)
    for rule in shipped.alerts():
        labels = rule["labels"]
        found[rule["alert"]].add((labels["severity"], labels["remediate"], labels["page"]))
    assert found == LABELS


def test_groups_follow_the_global_interval_and_have_names_of_their_own():
    groups = shipped.load(shipped.RULES)["groups"]
    assert all(set(group) == {"name", "rules"} for group in groups)
    assert len({group["name"] for group in groups}) == len(groups)


@every_alert
def test_labels_never_change_with_the_value(alert):
    assert set(alert["labels"]) == {"severity", "remediate", "page"}
    assert not any("{{" in value for value in alert["labels"].values())


@every_alert
def test_annotations_are_whole(alert):
    annotations = alert["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "{{" not in annotations["summary"]
    assert re.fullmatch(r"[A-Z].*\.", annotations["summary"])
    assert annotations["runbook_url"] == RUNBOOK_URL.format(alert["alert"])


@every_alert
def test_what_triggers_automation_bridges_a_missed_scrape_and_no_more(alert):
    kept = alert.get("keep_firing_for")
    if alert["labels"]["remediate"] == "true":
        assert kept
    assert kept in {None, f"{BRIDGE_SECONDS}s"}


@every_alert
def test_an_index_is_no_identity(alert):
    # It is renumbered when a card drops.
    assert not re.search(r"\b(?:by|on) \([^)]*\bgpu\b", alert["expr"])


@every_name
def test_one_summary_a_name(name):
    found = {r["annotations"]["summary"] for r in shipped.alerts() if r["alert"] == name}
    assert len(found) == 1


@every_name
def test_is_shown_to_fire_and_not_to_fire(name):
    shown = [bool(expected) for alert, expected in shipped.expectations() if alert == name]
    assert True in shown
    assert False in shown or name == "Watchdog"


def test_cases_name_only_alerts_that_exist():
    # A misspelt name never fires, and its case would pass for ever.
    assert {name for name, _ in shipped.expectations()} <= set(shipped.alert_names())


@every_name
def test_has_a_runbook(name):
    text = (shipped.RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == RUNBOOK_SECTIONS
    for section in text.split("\n## ")[1:]:
        assert len(section.split()) > 6, f"{name}: {section.splitlines()[0]} says nothing"


@every_name
def test_a_runbook_names_the_playbook_that_answers_the_alert(name):
    blocks = shipped.load(shipped.PLAYBOOKS)
    answering = {playbook for playbook, block in blocks.items() if name in block["alerts"]}
    told = set(re.findall(r"`([a-z-]+)`", _section(name, "Automatic action"))) & set(blocks)
    remediated = {r["labels"]["remediate"] for r in shipped.alerts() if r["alert"] == name}
    assert answering <= told
    assert not answering or "true" in remediated
    if not answering and "true" in remediated:
        assert "none of the default playbooks" in " ".join(
            _section(name, "Automatic action").split()
        )


def _section(name: str, heading: str) -> str:
    text = (shipped.RUNBOOKS / f"{name}.md").read_text()
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_no_runbook_is_left_over():
    assert {path.stem for path in shipped.RUNBOOKS.glob("*.md")} == set(shipped.alert_names())


def test_the_table_of_alerts_is_complete():
    text = (shipped.ROOT / "docs" / "alerts.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \|", text, re.MULTILINE)
    assert all(name == target for name, target in rows)
    assert sorted(name for name, _ in rows) == sorted(shipped.alert_names())


@every_rule
def test_reads_only_series_that_somebody_exports(rule):
    known = metric_names.known()
    known |= {other["record"]: frozenset() for other in shipped.rules() if "record" in other}
    for metric, labels in metric_names.selected_in(rule["expr"]):
        assert metric in known
        assert set(labels) <= known[metric] | metric_names.TARGET, metric


def test_a_value_of_an_enumeration_is_one_that_somebody_exports():
    asked = {
        (metric, label, value)
        for rule in shipped.rules()
        for metric, labels in metric_names.selected_in(rule["expr"])
        for label, values in labels.items()
        if (metric, label) in metric_names.VALUES
        for value in values.split("|")
    }
    assert {(metric, label) for metric, label, _ in asked} == set(metric_names.VALUES)
    assert [a for a in asked if a[2] not in metric_names.VALUES[a[0], a[1]]] == []


def test_texts_look_up_only_what_the_exporter_exports():
    known = metric_names.known()
    looked_up = re.findall(r'printf "(\w+)\{(\w+)=%q\}"', shipped.RULES.read_text())
    assert looked_up
    assert all(label in known[metric] for metric, label in looked_up)
    assert "name" in known["gpu_info"]


@pytest.mark.parametrize(
    "rule", [r for r in shipped.rules() if "record" in r], ids=lambda rule: rule["record"]
)
def test_recordings_are_named_level_metric_operations(rule):
    assert re.fullmatch(r"(uuid|llm_service|instance|job):[a-z0-9_]+:[a-z0-9_]+", rule["record"])


def test_the_critical_xids_are_those_of_the_table():
    (rule,) = [r for r in shipped.alerts() if r["alert"] == "GPUXidCritical"]
    told = re.findall(r'xid=~"([^"]*)"', rule["expr"])
    assert len(told) == rule["expr"].count("gpu_xid_")
    for codes in told:
        assert tuple(int(code) for code in codes.split("|")) == xids.critical()


def test_a_faults_remedy_is_its_reasons():
    remediated = {
        rule["labels"]["remediate"]: re.findall(r'reason(=~?|!~?)"([^"]*)"', rule["expr"])[0]
        for rule in shipped.alerts()
        if rule["alert"] == "GPUFault"
    }
    assert remediated == {
        "true": ("=", "reset_required"),
        "false": ("!~", "lost|reset_required|released"),
    }
