from __future__ import annotations

import pytest

from exporter.config import Config, load, parse
from exporter.errors import ConfigError
from tests.exporter.fakes import GIB, info


def test_without_a_file_the_owners_thresholds_hold() -> None:
    limits = load(None).policy.default.temperature
    assert (limits.warning, limits.critical, limits.shutdown) == (83, 85, 90)
    assert load(None).policy.saturation.seconds == 30


def test_an_empty_file_is_the_defaults(tmp_path) -> None:
    file = tmp_path / "exporter.yml"
    file.write_text("# nothing\n")
    assert load(file) == Config()


def test_a_whole_file() -> None:
    config = parse(
        {
            "expected_gpus": ["GPU-a", "GPU-b"],
            "thresholds": {
                "temperature": {"warning": 70},
                "memory": {"budget_gib": 40},
                "saturation": {"ratio": 0.95, "seconds": 60},
            },
            "overrides": [{"model": "NVIDIA H100*", "temperature": {"shutdown": 88}}],
            "intervals": {"processes": 30, "fault_after": 10},
            "host_metrics": {"enabled": False, "mountpoints": ["/", "/data"]},
            "processes": {"limit": 16},
            "pcie": {"throughput": True},
        }
    )
    assert config.pcie_throughput
    assert not Config().pcie_throughput
    assert config.expected_gpus == ("GPU-a", "GPU-b")
    assert config.policy.default.memory.budget_bytes == 40 * GIB
    assert config.intervals.processes == 30
    assert config.process_limit == 16
    assert not config.host_metrics.enabled
    h100 = config.policy.for_gpu(info(0, name="NVIDIA H100 80GB")).temperature
    assert (h100.warning, h100.critical, h100.shutdown) == (70, 85, 88)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"treshold": {}}, "did you mean 'thresholds'"),
        ({"thresholds": {"temperature": {"warn": 80}}}, "thresholds.temperature.warn"),
        ({"thresholds": {"temperature": {"warning": "hot"}}}, "expected a number"),
        ({"thresholds": {"temperature": {"warning": True}}}, "expected a number"),
        ({"thresholds": {"temperature": {"warning": 86}}}, "ascend"),
        ({"thresholds": {"memory": {"budget_gib": 1, "budget_bytes": 1}}}, "not both"),
        ({"thresholds": {"memory": {"warning_ratio": 0.97}}}, "critical_ratio"),
        ({"thresholds": {"memory": {"critical_ratio": 95}}}, "not between"),
        ({"overrides": [{"temperature": {}}]}, "either uuid or model"),
        ({"overrides": [{"uuid": 5}]}, "must be text"),
        ({"overrides": {}}, "expected a list"),
        ({"expected_gpus": "all"}, "auto, a count or a list"),
        ({"expected_gpus": True}, "auto, a count or a list"),
        ({"host_metrics": {"mountpoints": ["data"]}}, "absolute paths"),
        ({"host_metrics": {"enabled": "yes"}}, "true or false"),
        ([1, 2], "expected a mapping"),
    ],
)
def test_what_is_not_understood_is_an_error_that_helps(document, says) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(document)


def test_a_file_that_is_not_there_or_not_yaml(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yml")
    file = tmp_path / "bad.yml"
    file.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match=r"bad\.yml is not YAML"):
        load(file)
