"""The rules that give other exporters' names: their dashboards find data, with the right values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.exporter.golden import CAPTURES
from tests.rules import metric_names, shipped

COMPAT = shipped.ROOT / "prometheus" / "compat"
DCGM = COMPAT / "dcgm.yml"
NVIDIA_SMI = COMPAT / "nvidia_gpu_exporter.yml"
TARGET = 'job="gpu-exporter",instance="box:9940"'

# NVIDIA/dcgm-exporter, grafana/dcgm-exporter-dashboard.json (Grafana 12239), May 2026, with what an H100
# under load must show; `label_values(metric, label)` of its variables is here the metric.
DASHBOARD_12239 = {
    'DCGM_FI_DEV_GPU_TEMP{instance=~"$instance", gpu=~"$gpu"}': 59,
    'avg(DCGM_FI_DEV_GPU_TEMP{instance=~"$instance", gpu=~"$gpu"})': 59,
    'DCGM_FI_DEV_POWER_USAGE{instance=~"$instance", gpu=~"$gpu"}': 629.45,
    'sum(DCGM_FI_DEV_POWER_USAGE{instance=~"$instance", gpu=~"$gpu"})': 629.45,
    'DCGM_FI_DEV_SM_CLOCK{instance=~"$instance", gpu=~"$gpu"} * 1000000': 1.98e9,
    'DCGM_FI_DEV_GPU_UTIL{instance=~"$instance", gpu=~"$gpu"}': 100,
    'DCGM_FI_DEV_FB_USED{instance=~"$instance", gpu=~"$gpu"}': 19818,
    "DCGM_FI_DEV_GPU_TEMP": 59,
}
# The ninth, the tensor cores, is a profiling metric: NVML does not have it.
NOT_IN_NVML = "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"

# The same repository, etc/default-counters.csv: what is not commented out and has no reading of ours.
NOT_RECORDED = {
    "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE",
    "DCGM_FI_PROF_PCIE_TX_BYTES",
    "DCGM_FI_PROF_PCIE_RX_BYTES",
}
# And the others, with their values there: MiB, %, W, mJ, degrees Celsius, MHz.
DEFAULT_COUNTERS = {
    "DCGM_FI_DEV_SM_CLOCK": 1980,
    "DCGM_FI_DEV_MEM_CLOCK": 2619,
    "DCGM_FI_DEV_MEMORY_TEMP": 55,
    "DCGM_FI_DEV_GPU_TEMP": 59,
    "DCGM_FI_DEV_POWER_USAGE": 629.45,
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 5_000_250,
    "DCGM_FI_DEV_GPU_UTIL": 100,
    "DCGM_FI_DEV_MEM_COPY_UTIL": 11,
    "DCGM_FI_DEV_ENC_UTIL": 0,
    "DCGM_FI_DEV_DEC_UTIL": 0,
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 9,
    "DCGM_FI_DEV_XID_ERRORS": 0,
    "DCGM_FI_DEV_FB_FREE": 61263,
    "DCGM_FI_DEV_FB_USED": 19818,
    "DCGM_FI_DEV_FB_RESERVED": 479,
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0,
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 0,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
}
# Commented out there, or not in the file; made by many.
MORE_COUNTERS = {
    "DCGM_FI_DEV_FB_TOTAL": 81559,
    "DCGM_FI_DEV_PSTATE": 0,
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": 700,
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF": 700,
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN": 200,
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX": 700,
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 0,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 0,
    "DCGM_FI_DEV_ROW_REMAP_PENDING": 0,
    "DCGM_FI_DEV_POWER_VIOLATION": 0,
    "DCGM_FI_DEV_THERMAL_VIOLATION": 0,
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION": 0,
}
DCGM_LABELS = {
    "job": "gpu-exporter",
    "instance": "box:9940",
    "gpu": "0",
    "UUID": "GPU-00000000-0000-4000-8000-000000000000",
    "pci_bus_id": "00000000:00:09.0",
    "device": "nvidia0",
    "modelName": "NVIDIA H100 80GB HBM3",
    "Hostname": "box",
    "hostname": "box",
    "DCGM_FI_DRIVER_VERSION": "590.48.01",
}

# utkuozdemir/nvidia_gpu_exporter, docs/grafana/dashboard.json (Grafana 14574), August 2026. Those for MIG,
# PCIe, the fabric, fans and the aggregate ECC counters have no rule here, or no reading of this card.
SMI = '{uuid="$gpu", instance="$node", job="$job"}'
REASONS = (
    "applications_clocks_setting",
    "gpu_idle",
    "hw_power_brake_slowdown",
    "hw_thermal_slowdown",
    "sw_power_cap",
    "sw_thermal_slowdown",
    "sync_boost",
)
THROTTLED = " + ".join(
    f"(sum by(uuid) (nvidia_smi_clocks_event_reasons_{reason}{SMI}"
    f" or nvidia_smi_clocks_throttle_reasons_{reason}{SMI})"
    f" or (sum by(uuid) (nvidia_smi_gpu_info{SMI}) * 0))"
    for reason in (
        "sw_power_cap",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
    )
)
CARD_LABEL = (
    'label_join(label_replace(label_join(nvidia_smi_gpu_info{instance="$node", job="$job"},'
    ' "ni", " #", "name", "index"), "us", "($1)", "uuid", "^(........).*"), "gpu_label", " ", "ni", "us")'
)
DASHBOARD_14574 = {
    f"nvidia_smi_temperature_gpu{SMI}": 59,
    f"nvidia_smi_utilization_gpu_ratio{SMI}": 1,
    f"nvidia_smi_utilization_memory_ratio{SMI}": 0.11,
    f"nvidia_smi_memory_used_bytes{SMI}": 19818 * 2**20,
    f"nvidia_smi_memory_used_bytes{SMI} / nvidia_smi_memory_total_bytes{SMI}": 19818 / 81559,
    f"nvidia_smi_power_draw_watts{SMI}": 629.45,
    f"nvidia_smi_power_draw_watts{SMI} / (nvidia_smi_enforced_power_limit_watts{SMI}"
    f" or nvidia_smi_power_limit_watts{SMI} or nvidia_smi_power_default_limit_watts{SMI})": 629.45 / 700,
    f"nvidia_smi_pstate{SMI}": 0,
    f"nvidia_smi_gpu_info{SMI}": 1,
    f"nvidia_smi_gpu_recovery_action{SMI}": 0,
    f"nvidia_smi_clocks_current_graphics_clock_hz{SMI}": 1.98e9,
    f"nvidia_smi_clocks_current_sm_clock_hz{SMI}": 1.98e9,
    f"nvidia_smi_clocks_current_memory_clock_hz{SMI}": 2.619e9,
    f"nvidia_smi_clocks_current_video_clock_hz{SMI}": 1.545e9,
    f"nvidia_smi_clocks_current_graphics_clock_hz{SMI} / nvidia_smi_clocks_max_graphics_clock_hz{SMI}": 1,
    f"nvidia_smi_clocks_current_memory_clock_hz{SMI} / nvidia_smi_clocks_max_memory_clock_hz{SMI}": 1,
    **{
        f"nvidia_smi_clocks_event_reasons_{reason}{SMI}"
        f" or nvidia_smi_clocks_throttle_reasons_{reason}{SMI}": 0
        for reason in REASONS
    },
    THROTTLED: 0,
    CARD_LABEL: 1,
    f"nvidia_smi_compute_app_used_memory_bytes{SMI}": (2566 + 1542 + 15690) * 2**20,
    f"rate(nvidia_smi_energy_joules_total{SMI}[1m])": 0,
    f"sum(nvidia_smi_xid_errors_total{SMI}) or sum(nvidia_smi_gpu_info{SMI}) * 0": 0,
    f"sum(increase(nvidia_smi_energy_joules_total{SMI}[24h])) / 3.6e6": 0,
    "nvidia_smi_index": 0,
    f'sum(nvidia_smi_compute_app_used_memory_bytes{SMI} or (nvidia_smi_compute_app_info{SMI} * 0))':
        (2566 + 1542 + 15690) * 2**20,
}  # fmt: skip


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in shipped.load(path)["groups"] for rule in group["rules"]]


def page(card: str, target: str = TARGET) -> dict[str, str]:
    """The series of a card's page as Prometheus would have them, each with one value for ever."""
    text = (CAPTURES / f"{card}.metrics").read_text()
    found = {}
    for line in text.splitlines():
        name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
        found[f"{name}{{{target}{',' + labels if labels else ''}}}"] = f"{float(value):f}+0x20"
    return found


def h100() -> dict[str, str]:
    """With what nvidia-smi does not print, and so is not on the page."""
    card = f'{TARGET},gpu="0",uuid="{DCGM_LABELS["UUID"]}"'
    return page("h100-80gb-hbm3") | {
        f"gpu_energy_joules_total{{{card}}}": "5000.25+0x20",
        f'gpu_xid_errors_total{{{card},xid="79"}}': "0x20",
    }


@pytest.fixture
def promtool(binaries, tmp_path):
    def test(
        path: Path,
        series: dict[str, str],
        expected: dict[str, Any],
        interval: str = "15s",
        at: str = "1m",
    ):
        """`expected`: by expression a list of (labels, value), or a value of whatever labels."""
        cases = [
            {"expr": expr, "eval_time": at, "exp_samples": [sample(*one) for one in found]}
            for expr, found in expected.items()
        ]
        test = {
            "interval": interval,
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": cases,
        }
        file = tmp_path / "test.yml"
        document = {"rule_files": [str(path)], "evaluation_interval": interval, "tests": [test]}
        file.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
        done = shipped.run(binaries.promtool, "test", "rules", file)
        assert done.status == 0, done.output

    return test


def sample(labels: dict[str, str], value: float) -> dict[str, Any]:
    names = {key: one for key, one in labels.items() if key != "__name__"}
    inside = ", ".join(f'{key}="{one}"' for key, one in names.items())
    return {"labels": f"{labels.get('__name__', '')}{{{inside}}}", "value": value}


def alone(expr: str) -> str:
    """One number of whatever labels: nothing when there is none, or more than one card of it."""
    return f"sum({expr}) / (count(count by (uuid, UUID) ({expr})) == 1)"


@pytest.mark.parametrize("path", [DCGM, NVIDIA_SMI], ids=lambda path: path.stem)
def test_prometheus_accepts_them_without_a_complaint(binaries, path) -> None:
    done = shipped.run(binaries.promtool, "check", "rules", "--lint-fatal", path)
    assert done.status == 0, done.output


@pytest.mark.parametrize("path", [DCGM, NVIDIA_SMI], ids=lambda path: path.stem)
def test_they_read_only_what_the_exporter_promises(path) -> None:
    known = {name: labels | metric_names.TARGET for name, labels in metric_names.known().items()}
    recorded = {rule["record"] for rule in rules(path)}
    read = [one for rule in rules(path) for one in metric_names.selected_in(rule["expr"])]
    assert {name for name, _ in read} <= known.keys() | recorded
    for name, labels in read:
        if name in known:
            assert labels.keys() <= known[name]
            for label, value in labels.items():
                allowed = metric_names.VALUES.get((name, label))
                assert allowed is None or "|" in value or value in allowed
    assert len(recorded) == len(rules(path))


def test_a_group_follows_the_global_interval() -> None:
    groups = [group for path in (DCGM, NVIDIA_SMI) for group in shipped.load(path)["groups"]]
    assert all(set(group) == {"name", "rules"} for group in groups)


def test_every_default_counter_is_recorded_or_known_to_be_missing() -> None:
    recorded = {rule["record"] for rule in rules(DCGM) if rule["record"].startswith("DCGM_")}
    assert DEFAULT_COUNTERS.keys() | {"DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"} <= recorded
    assert not NOT_RECORDED & recorded
    assert NOT_IN_NVML in NOT_RECORDED
    documented = set(re.findall(r"`(DCGM_\w+)`", (shipped.ROOT / "docs/dashboards.md").read_text()))
    assert documented >= NOT_RECORDED


def test_dashboard_12239_finds_data(promtool) -> None:
    expressions = {
        alone(expr.replace("$instance", ".*").replace("$gpu", ".*")): [({}, value)]
        for expr, value in DASHBOARD_12239.items()
    }
    promtool(DCGM, h100(), expressions)


def test_names_labels_and_units_are_those_of_dcgm_exporter(promtool) -> None:
    counters = DEFAULT_COUNTERS | MORE_COUNTERS
    promtool(
        DCGM,
        h100(),
        {name: [({"__name__": name, **DCGM_LABELS}, value)] for name, value in counters.items()},
    )


def test_what_is_absent_stays_absent(promtool) -> None:
    nothing = dict.fromkeys(
        (
            "DCGM_FI_DEV_MEMORY_TEMP",
            "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
            "DCGM_FI_DEV_THERMAL_VIOLATION",
            "DCGM_FI_DEV_XID_ERRORS",
            "DCGM_FI_DEV_SLOWDOWN_TEMP",
        ),
        (),
    )
    fan = {alone("DCGM_FI_DEV_FAN_SPEED"): [({}, 0)]}
    promtool(DCGM, page("rtx-4090"), nothing | fan)


def test_limits_of_the_hardware_where_it_tells_them(promtool) -> None:
    limits = {"DCGM_FI_DEV_SLOWDOWN_TEMP": 89, "DCGM_FI_DEV_SHUTDOWN_TEMP": 92}
    expected = {alone(name): [({}, value)] for name, value in limits.items()}
    promtool(DCGM, page("a100-sxm4-40gb"), expected)


def test_xids_are_the_last_one_as_a_number(promtool) -> None:
    def card(number: int) -> str:
        return f'{TARGET},gpu="{number}",uuid="GPU-{number}"'

    series = {f"gpu_info{{{card(number)}}}": "1x20" for number in range(4)}
    for number, seen in enumerate(({"79": 5, "13": 4, "119": 3}, {"119": 7}, {"8": 1}, {})):
        series[f'gpu_xid_errors_total{{{card(number)},xid="48"}}'] = "0x20"
        for xid, when in seen.items():
            series[f'gpu_xid_last_timestamp_seconds{{{card(number)},xid="{xid}"}}'] = f"{when}x20"
            series[f'gpu_xid_errors_total{{{card(number)},xid="{xid}"}}'] = "1x20"
    expected = {
        alone(f'DCGM_FI_DEV_XID_ERRORS{{gpu="{number}"}}'): [({}, xid)]
        for number, xid in enumerate((79, 119, 8, 0))
    }
    promtool(DCGM, series, expected)


def test_video_engines_are_percent(promtool) -> None:
    card = f'{TARGET},gpu="0",uuid="GPU-0"'
    series = {
        f"gpu_info{{{card}}}": "1x20",
        f"gpu_encoder_utilization_ratio{{{card}}}": "0.25x20",
        f"gpu_decoder_utilization_ratio{{{card}}}": "0.5x20",
    }
    engines = {"DCGM_FI_DEV_ENC_UTIL": 25, "DCGM_FI_DEV_DEC_UTIL": 50}
    promtool(DCGM, series, {alone(name): [({}, value)] for name, value in engines.items()})


def test_traffic_of_nvlink_is_a_rate_of_both_directions_as_in_dcgm(promtool) -> None:
    card = f'{TARGET},gpu="0",uuid="GPU-0"'
    series = {f"gpu_info{{{card}}}": "1x20"}
    # 2 and 3 million times 1.024 bytes a second.
    for direction, growth in (("transmit", 30_720_000), ("receive", 46_080_000)):
        series[f'gpu_nvlink_bytes_total{{{card},direction="{direction}"}}'] = f"9e12+{growth}x20"
    expected = {alone("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"): [({}, 5)]}
    promtool(DCGM, series, expected, at="4m")


def test_two_kinds_of_heat_are_one(promtool) -> None:
    card = f'{TARGET},gpu="0",uuid="GPU-0"'
    series = {f"gpu_info{{{card}}}": "1x20"}
    for reason, seconds in (("sw_thermal_slowdown", 2), ("hw_thermal_slowdown", 3)):
        series[f'gpu_clock_event_seconds_total{{{card},reason="{reason}"}}'] = f"{seconds}x20"
    promtool(DCGM, series, {alone("DCGM_FI_DEV_THERMAL_VIOLATION"): [({}, 5e9)]})


def test_two_hosts_two_jobs_and_a_card_that_was_renumbered(promtool) -> None:
    series = {}
    for target in ('job="a",instance="one:9940"', 'job="b",instance="one:9940"',
                   'job="a",instance="[::1]:9940"'):  # fmt: skip
        series[f'gpu_info{{{target},gpu="0",uuid="GPU-0",name="A",driver_version="1"}}'] = "1x20"
        series[f'gpu_temperature_celsius{{{target},gpu="0",uuid="GPU-0"}}'] = "50x20"
    # Seen under both its numbers in one evaluation.
    one = 'job="a",instance="two:9940"'
    for number in (0, 1):
        series[f'gpu_info{{{one},gpu="{number}",uuid="GPU-1"}}'] = "1x20"
        series[f'gpu_temperature_celsius{{{one},gpu="{number}",uuid="GPU-1"}}'] = "60x20"
    # It never came up: its number is not known, and it has no reading.
    series[f'gpu_info{{{one},gpu="",uuid="GPU-2"}}'] = "1x20"
    promtool(
        DCGM,
        series,
        {
            'count by (Hostname) (DCGM_FI_DEV_GPU_TEMP{UUID="GPU-0"} == 50)': [
                ({"Hostname": "one"}, 2),
                ({"Hostname": "[::1]"}, 1),
            ],
            'count by (device) (DCGM_FI_DEV_GPU_TEMP{UUID="GPU-1"} == 60)': [
                ({"device": "nvidia0"}, 1),
                ({"device": "nvidia1"}, 1),
            ],
            'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-2"}': [],
        },
    )


def test_dashboard_14574_finds_data(promtool) -> None:
    values = {"$gpu": DCGM_LABELS["UUID"].removeprefix("GPU-"), "$node": "box:9940"}
    values["$job"] = "gpu-exporter"
    expressions = {}
    for expr, value in DASHBOARD_14574.items():
        for variable, text in values.items():
            expr = expr.replace(variable, text)  # noqa: PLW2901
        expressions[alone(expr)] = [({}, value)]
    promtool(NVIDIA_SMI, h100(), expressions)


def test_names_of_nvidia_gpu_exporter_have_its_labels_and_no_prefix(promtool) -> None:
    uuid = DCGM_LABELS["UUID"].removeprefix("GPU-")
    target = {"job": "gpu-exporter", "instance": "box:9940", "uuid": uuid}
    told = {
        "index": "0",
        "name": "NVIDIA H100 80GB HBM3",
        "pci_bus_id": "00000000:00:09.0",
        "driver_version": "590.48.01",
        "cuda_version": "13.1",
        "vbios_version": "96.00.A5.00.01",
    }
    app = {"pid": "4194305", "process_name": ""}
    used, info = "nvidia_smi_compute_app_used_memory_bytes", "nvidia_smi_compute_app_info"
    totals = ("nvidia_smi_ecc_errors_corrected_volatile_total", "nvidia_smi_compute_apps")
    expected = {
        "nvidia_smi_gpu_info": [({"__name__": "nvidia_smi_gpu_info", **target, **told}, 1)],
        f'{used}{{pid="4194305"}}': [({"__name__": used, **target, **app}, 2566 * 2**20)],
        f'{info}{{pid="4194305"}}': [({"__name__": info, **target, **app}, 1)],
        'nvidia_smi_xid_errors_total{xid="79"}': [
            ({"__name__": "nvidia_smi_xid_errors_total", **target, "xid": "79"}, 0)
        ],
        **{
            name: [({"__name__": name, **target}, value)]
            for name, value in zip(totals, (0, 3), strict=True)
        },
    }
    promtool(NVIDIA_SMI, h100(), expected)


@pytest.mark.parametrize(("action", "number"), [("reset", 1), ("system_reboot", 7)])
def test_a_recovery_action_is_the_drivers_number(promtool, action, number) -> None:
    card = f'{TARGET},gpu="0",uuid="GPU-0"'
    series = {f'gpu_recovery_action{{{card},action="{action}"}}': "1x20"}
    promtool(NVIDIA_SMI, series, {alone("nvidia_smi_gpu_recovery_action"): [({}, number)]})
