"""What a person reads: every text as the real Prometheus renders it in every case that fires."""

from __future__ import annotations

import re

import pytest

from tests.rules import shipped

NAME = "NVIDIA H200"


def rendered(binaries, folder, case):
    """What promtool prints of alerts whose texts nobody expected, with white space made plain."""
    unit_test = shipped.write_unit_test(folder, case, annotations=True)
    return " ".join(shipped.run(binaries.promtool, "test", "rules", unit_test).output.split())


def once(alert, *series):
    """A case in which an alert fires on steady series."""
    return {
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": one, "values": f"{value}x9"} for one, value in series],
                "alert_rule_test": [
                    {"eval_time": "30s", "alertname": alert, "exp_alerts": [{"exp_labels": {}}]}
                ],
            }
        ]
    }


def card(**more):
    labels = {"job": "gpu-exporter", "instance": "host-a", "gpu": "0", "uuid": "GPU-1", **more}
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def hot(*info):
    """GPUTemperatureShutdown fires, with these gpu_info series."""
    return once(
        "GPUTemperatureShutdown",
        (f"gpu_temperature_celsius{card()}", 91.4),
        (f"gpu_temperature_threshold_celsius{card(level='shutdown')}", 90),
        *((f"gpu_info{labels}", 1) for labels in info),
    )


def test_says_the_value_the_card_and_the_host(binaries, tmp_path):
    text = rendered(binaries, tmp_path, hot(card(name=NAME)))
    assert f"{NAME} GPU-1 on host-a is at 91 °C" in text


def test_a_failing_store_promises_a_stop_for_heat_and_no_more(binaries, tmp_path):
    """Nothing else is begun that cannot be recorded first; on-call has to know that it is alone."""
    labels = '{job="gpu-remediator",instance="host-a"}'
    failing = once("RemediatorStorageFailing", (f"remediator_storage_failing{labels}", 1))
    text = rendered(binaries, tmp_path, failing)
    assert "begins no new action but a stop for heat. Undoing goes on." in text


@pytest.mark.parametrize(
    ("last_step", "reason", "said"),
    [
        ("canary", "ineffective", "got as far as canary and ended with the reason ineffective."),
        ("", "flapping", "ended with the reason flapping."),
    ],
)
def test_an_ended_remediation_names_its_reason_and_claims_no_more(
    last_step, reason, said, binaries, tmp_path
):
    labels = (
        '{job="gpu-remediator",instance="host-a",trigger="LLMServiceDown",llm_service="ollama",'
        f'playbook="recover-oom",last_step="{last_step}",reason="{reason}",state="needs_human"}}'
    )
    ended = once("RemediationFailed", (f"remediator_incident_state{labels}", 1))
    text = rendered(binaries, tmp_path, ended)
    assert "A remediation ended and needs a person." in text
    assert f"recover-oom for LLMServiceDown on ollama {said}" in text
    assert "did not help" not in text


@pytest.mark.parametrize(
    ("info", "named"),
    [
        ([], "GPU GPU-1 on host-a is at 91 °C"),
        (
            [card(name=NAME), card(name=NAME, job="gpu-again"), card(name=NAME, gpu="1")],
            f"{NAME} GPU-1 on host-a is at 91 °C",
        ),
    ],
    ids=["absent", "doubled"],
)
def test_a_card_without_a_clear_name_is_alerted_all_the_same(info, named, binaries, tmp_path):
    assert named in rendered(binaries, tmp_path, hot(*info))


def firing(case):
    """Of a case only what fires, as soon as it does."""
    for test in case["tests"]:
        first = {}
        for expected in test.get("alert_rule_test", ()):
            if expected["exp_alerts"]:
                first.setdefault(expected["alertname"], expected)
        if first:
            yield {**test, "alert_rule_test": list(first.values()), "promql_expr_test": []}


@pytest.fixture(scope="module")
def texts(binaries, tmp_path_factory):
    """What each case file shows."""
    return {
        path.stem: rendered(binaries, tmp_path_factory.mktemp(path.stem), {**case, "tests": tests})
        for path in shipped.case_files()
        if (tests := list(firing(case := shipped.load(path))))
    }


def test_no_text_is_broken(texts):
    fired = {name for name, expected in shipped.expectations() if expected}
    whole = " ".join(texts.values())
    assert fired == set(re.findall(r"runbooks/(\w+)\.md", whole))
    for broken in ("error expanding template", "<no value>", "%!", "{{", "}}"):
        assert broken not in whole


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("availability", "2 of the GPUs expected on a cannot be seen"),
        ("availability", "GPU GPU-1 on a is expected, does not answer"),
        ("exporter", "its backend nvml does not work"),
        ("exporter", "GPU GPU-1 on a was last read"),
        ("exporter", "from the GPU exporter: GPUs there"),
        ("exporter", "from the GPU exporter at a: GPUs there"),
        ("remediator", "had its last delivery, or its last Watchdog, 5m 15s ago"),
        ("remediator", "had no Watchdog yet"),
        ("remediator", "cool-down for GPUTemperatureCritical on GPU-1 got as far as restart"),
        ("incident", "LLMServiceDown for ollama on b has been firing"),
        ("incident", "GPUTemperatureCritical for GPU-1 on a has been firing"),
        ("hang", "has been saturated for 30s"),
        ("memory", "36GiB"),
        ("errors", "GPU GPU-1 on a asks for a recovery: reset."),
        ("errors", "GPU GPU-1 on a reported Xid 119 within"),
        ("errors", "GPU GPU-1 on a could not remap a broken row"),
        ("errors", "GPU GPU-1 on a has reached its hardware's own limit of temperature"),
        ("errors", "GPU GPU-2 on b is slowed down by the external power brake"),
        (
            "ecc",
            "GPU GPU-1 on a had uncorrectable errors in its dram memory within the last hour, 2",
        ),
        ("service", "vllm had at least 2 requests at any time of the last 2 minutes"),
        ("service", "ollama could not get memory"),
        ("service", "ray has said for 30m 15s that it is coming up"),
        (
            "service",
            "the replicas of ray ask for come to more than its cards: 1.25 cards. The last",
        ),
        ("service", "vllm kept running out of memory, so it is started by its second manager"),
        ("service", "The log of vllm told of failures of the kind hardware within"),
        ("host", "a uses 91% of its memory, above the critical 90 %"),
        ("host", "/ on a has only 9.5% of its space left"),
        ("incident", "HostDiskSpaceLow on a has been firing"),
        ("incident", "clear-cache for HostMemoryCritical on the host of the remediator a:9941 got"),
    ],
)
def test_texts_say_what_matters(case, words, texts):
    assert words in texts[case]
