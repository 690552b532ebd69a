"""What the simulated cards do not have: the queries of its panels over series of such cards."""

from __future__ import annotations

import pytest
import yaml

from deploy.local.binaries import find
from tests.dashboards.shipped import queries, substituted
from tests.rules import shipped as rules

CARD = 'job="gpu-exporter",instance="box:9940",gpu="0",uuid="GPU-0"'
MIG = f'{CARD},mig_uuid="MIG-1"'
USE = f'{CARD},pid="7",process="vllm",unit="",container_name=""'
SERIES = {
    f'gpu_info{{{CARD},name="H100"}}': "1x20",
    f"gpu_temperature_margin_celsius{{{CARD}}}": "26x20",
    f"gpu_pcie_link_width{{{CARD}}}": "8x20",
    f"gpu_pcie_link_width_max{{{CARD}}}": "16x20",
    f"gpu_pcie_replays_total{{{CARD}}}": "100+15x20",
    f'gpu_pcie_errors_total{{{CARD},kind="bad_tlp"}}': "100+30x20",
    f'gpu_nvlink_errors_total{{{CARD},link="0",kind="crc"}}': "100x20",
    f'gpu_nvlink_errors_total{{{CARD},link="3",kind="crc"}}': "100+45x20",
    f'gpu_nvlink_bytes_total{{{CARD},direction="transmit"}}': "1e12+15000x20",
    f'gpu_mig_info{{{MIG},gpu_instance="1",compute_instance="0",profile="1g.10gb"}}': "1x20",
    f"gpu_mig_memory_used_bytes{{{MIG}}}": "25x20",
    f"gpu_mig_memory_total_bytes{{{MIG}}}": "100x20",
    f"gpu_process_utilization_ratio{{{USE}}}": "0.75x20",
}
SHOWN = {
    "Margin/A": 26,
    "PCIe lanes/A": 8,
    "PCIe lanes/B": 16,
    "PCIe errors/A": 1,
    "PCIe errors/B": 2,
    "NVLink errors/A": 3,
    "NVLink traffic/A": 1000,
    "Memory of MIG devices/A": 0.25,
    "Utilisation by process/A": 0.75,
}


@pytest.fixture(scope="module")
def promtool():
    return find().promtool


def test_each_panel_shows_the_one_series_that_it_is_for(promtool, tmp_path) -> None:
    by_name = {query.where: query.expr for query in queries()}
    cases = [
        {
            # One number of whatever labels: nothing when there are more.
            "expr": f"sum({expr}) / (count({expr}) == 1)",
            "eval_time": "4m",
            "exp_samples": [{"labels": "{}", "value": value}],
        }
        for name, value in SHOWN.items()
        for expr in [substituted(by_name[f"gpu-fleet/{name}"])]
    ]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in SERIES.items()],
        "promql_expr_test": cases,
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}, sort_keys=False))
    done = rules.run(promtool, "test", "rules", file)
    assert done.status == 0, done.output
