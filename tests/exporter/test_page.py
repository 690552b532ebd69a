"""The page: complete, described, absent rather than zero, and one bad GPU costs only itself."""

from __future__ import annotations

import dataclasses
import random
import re
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from deploy.local.binaries import find
from exporter.catalogue import METRICS, Kind
from exporter.exposition import Series
from exporter.frames import BackendFrame, DevicesFrame, FailedDevice, FaultFrame
from exporter.host import HostReader
from exporter.page import Page
from exporter.readings import BackendReason, DeviceHealth, FaultReason, ProcessUse, Sample
from exporter.web.config_rows import config_rows
from serving.live import State
from tests.exporter.fakes import Bench, health, info


class Served:
    """A web configuration that is in force."""

    def state(self) -> State:
        return State(is_current=True, since=1.0, certificate_expires=2.0)


LOST = FaultReason.LOST
OWN = re.compile(r"(gpu|host)_")


def rendered(bench: Bench, accept: str = "", page: Page | None = None) -> str:
    if page is None:
        page = Page(bench.store, HostReader(["/"], bench.clock).read)
        page.add("web_config", lambda: config_rows(Served()))
    return page.render(accept)[0].decode()


def series(bench: Bench, page: Page | None = None) -> dict[str, list[tuple[dict[str, str], float]]]:
    text = rendered(bench, page=page)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in prometheus(text):
        for one in family.samples:
            found.setdefault(one.name, []).append((one.labels, one.value))
    return found


def full() -> Bench:
    bench = Bench(gpus=2)
    for uuid in ("GPU-0", "GPU-1"):
        bench.sample(uuid, errors=("timeout",))
        bench.processes(
            uuid,
            ProcessUse(4, "ollama", "ollama.service", "llm", 3 * 2**30, "3f1d" * 16, "b6a1", 0.5),
        )
        bench.health(uuid)
        bench.xid(uuid, 79)
    bench.store.apply(FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST))
    return bench


def test_every_metric_of_the_catalogue_is_on_a_page_and_nothing_else_is() -> None:
    down = Bench()
    down.store.apply(BackendFrame("nvml", up=False, reason=BackendReason.NO_PERMISSION))
    seen = set(series(full())) | set(series(down))
    own = {name for name in seen if OWN.match(name)}
    missing = METRICS.keys() - own
    # A kernel before 4.13 counts no OOM kills.
    assert missing <= {"host_oom_kills_total"}
    assert own <= METRICS.keys()


def test_type_help_and_labels_are_those_of_the_catalogue() -> None:
    text = rendered(full())
    by_name = {}
    for family in prometheus(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        by_name[name] = family
    for name, metric in METRICS.items():
        family = by_name.get(name)
        if family is None:
            continue
        kind = "gauge" if metric.kind is Kind.INFO else metric.kind.value
        assert (family.type, family.documentation) == (kind, metric.help), name
        for one in family.samples:
            assert set(one.labels) == set(metric.label_names), name


def test_names_hold_their_unit_and_only_counters_end_in_total() -> None:
    for name, metric in METRICS.items():
        base = name.removesuffix("_total").removesuffix("_info")
        assert not metric.unit or base.endswith("_" + metric.unit), name
        assert name.endswith("_total") == (metric.kind is Kind.COUNTER), name
        assert name.endswith("_info") == (metric.kind is Kind.INFO), name
        assert metric.help.endswith((".", "absent else.")), name


def test_the_strict_openmetrics_parser_accepts_the_page() -> None:
    text = rendered(full(), "application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics(text)}
    assert families["gpu_temperature_celsius"].unit == "celsius"
    assert families["gpu_busy_seconds"].type == "counter"
    assert not [name for name in families if name.endswith("_created")]


def test_what_could_not_be_read_is_absent_and_never_zero() -> None:
    bench = Bench()
    bench.sample(**dict.fromkeys((f.name for f in dataclasses.fields(Sample)), None))
    found = series(bench)
    for name in (
        "gpu_temperature_celsius",
        "gpu_utilization_ratio",
        "gpu_memory_used_bytes",
        "gpu_power_watts",
        "gpu_energy_joules_total",
        "gpu_clock_hertz",
        "gpu_clock_event_active",
        "gpu_fan_speed_ratio",
        "gpu_performance_state",
        "gpu_busy_seconds_total",
        "gpu_saturated_duration_seconds",
        "gpu_processes",
    ):
        assert name not in found, name
    assert found["gpu_up"][0][1] == 1


def test_a_lost_gpu_keeps_identity_and_policy_and_no_reading() -> None:
    found = series(full())
    of_lost = {
        name for name, all_ in found.items() if any(s[0].get("uuid") == "GPU-1" for s in all_)
    }
    assert of_lost == {
        "gpu_info",
        "gpu_up",
        "gpu_fault",
        "gpu_temperature_threshold_celsius",
        "gpu_memory_threshold_bytes",
        "gpu_saturation_threshold_ratio",
        "gpu_saturation_threshold_seconds",
        "gpu_exporter_last_collect_timestamp_seconds",
        "gpu_xid_errors_total",
        "gpu_xid_last_timestamp_seconds",
    }
    faults = found["gpu_fault"]
    assert faults == [({"gpu": "1", "uuid": "GPU-1", "reason": "lost"}, 1.0)]


def test_a_gpu_that_cannot_be_rendered_drops_only_its_own_series() -> None:
    bench = Bench(gpus=3)
    for index in range(3):
        bench.sample(f"GPU-{index}")
    bench.sample("GPU-1", temperature_celsius=float("nan"))
    found = series(bench)
    assert {labels["uuid"] for labels, _ in found["gpu_up"]} == {"GPU-0", "GPU-2"}
    assert {labels["uuid"] for labels, _ in found["gpu_power_watts"]} == {"GPU-0", "GPU-2"}
    again = series(bench)["gpu_exporter_collect_errors_total"]
    assert ({"collector": "render", "reason": "ValueError"}, 1.0) in again


def test_thresholds_are_series_for_rules_to_compare_with() -> None:
    found = series(full())
    levels = {
        labels["level"]: value
        for labels, value in found["gpu_temperature_threshold_celsius"]
        if labels["uuid"] == "GPU-0"
    }
    assert levels == {"warning": 83, "critical": 85, "shutdown": 90}
    assert {labels["level"] for labels, _ in found["gpu_memory_threshold_bytes"]} == {
        "warning",
        "critical",
    }


def test_clock_events_are_zero_or_one_for_every_reason() -> None:
    active = {labels["reason"]: value for labels, value in series(full())["gpu_clock_event_active"]}
    assert active["sw_power_cap"] == 1
    assert active["hw_thermal_slowdown"] == 0
    assert len(active) == 9


def test_health_has_a_series_for_each_kind() -> None:
    bench = Bench()
    bench.sample()
    bench.health(recovery_action="drain_and_reset", row_remap_pending=True)
    found = series(bench)

    def of(name: str, *labels: str) -> dict[tuple[str, ...], float]:
        return {tuple(one[label] for label in labels): value for one, value in found[name]}

    assert of("gpu_recovery_action", "action") == {("drain_and_reset",): 1}
    assert of("gpu_ecc_errors_total", "severity", "memory") == {
        ("corrected", "dram"): 3,
        ("corrected", "sram"): 0,
        ("uncorrected", "dram"): 0,
        ("uncorrected", "sram"): 0,
    }
    assert of("gpu_remapped_rows_total", "cause") == {("correctable",): 1, ("uncorrectable",): 0}
    assert of("gpu_retired_pages_total", "cause") == {("single_bit",): 0, ("double_bit",): 2}
    assert of("gpu_clock_event_seconds_total", "reason")[("sw_power_cap",)] == 12.5
    assert of("gpu_row_remap_pending") == {(): 1}
    assert of("gpu_row_remap_failure") == {(): 0}


def test_critical_xids_are_counted_from_zero_and_others_from_the_first() -> None:
    bench = Bench(gpus=2)
    bench.enumerate(info(0), info(1), watched=["GPU-0"])
    for uuid in ("GPU-0", "GPU-1"):
        bench.sample(uuid)
    page = Page(bench.store)

    def now(name: str) -> dict[tuple[str, str], float]:
        found = series(bench, page).get(name, [])
        return {(labels["uuid"], labels["xid"]): value for labels, value in found}

    assert now("gpu_xid_errors_total") == {("GPU-0", "48"): 0, ("GPU-0", "79"): 0}
    assert now("gpu_xid_last_timestamp_seconds") == {}
    bench.xid("GPU-0", 79)
    bench.advance(5)
    bench.xid("GPU-0", 79)
    bench.xid("GPU-0", 31)
    assert now("gpu_xid_errors_total") == {
        ("GPU-0", "31"): 1,
        ("GPU-0", "48"): 0,
        ("GPU-0", "79"): 2,
    }
    last = now("gpu_xid_last_timestamp_seconds")
    assert last == dict.fromkeys([("GPU-0", "31"), ("GPU-0", "79")], bench.clock.time())


def test_health_that_is_not_supported_has_no_series() -> None:
    bench = Bench()
    bench.sample()
    names = [field.name for field in dataclasses.fields(DeviceHealth)]
    bench.health(**dict.fromkeys(names))
    found = series(bench)
    for name in METRICS:
        if re.match("gpu_(recovery|ecc|remapped|row_remap|retired|clock_event_seconds)", name):
            assert name not in found, name


def test_a_failing_host_reading_costs_only_host_series() -> None:
    bench = full()

    def broken():
        raise OSError("no /proc")

    text = rendered(bench, page=Page(bench.store, broken))
    assert "gpu_up{" in text
    assert "host_memory_total_bytes" not in text


def test_host_metrics_can_be_switched_off() -> None:
    bench = full()
    assert "host_" not in rendered(bench, page=Page(bench.store))


@pytest.mark.parametrize("pid", [None, 7])
def test_the_remainder_has_no_pid(pid) -> None:
    bench = Bench()
    bench.sample()
    bench.processes("GPU-0", ProcessUse(pid, "other", memory_used_bytes=9))
    ((labels, value),) = series(bench)["gpu_process_memory_used_bytes"]
    assert labels["pid"] == ("" if pid is None else "7")
    assert value == 9


def test_what_is_kept_between_scrapes_follows_every_change() -> None:
    bench = Bench()
    page = Page(bench.store)

    def now(name: str, label: str) -> list[tuple[str, float]]:
        return [(labels[label], value) for labels, value in series(bench, page).get(name, [])]

    bench.sample()
    bench.processes("GPU-0", ProcessUse(1, "a", memory_used_bytes=5))
    assert now("gpu_process_memory_used_bytes", "process") == [("a", 5)]
    assert now("gpu_clock_max_hertz", "clock")
    bench.processes("GPU-0", ProcessUse(2, "b", memory_used_bytes=6))
    assert now("gpu_process_memory_used_bytes", "process") == [("b", 6)]
    bench.health()
    assert now("gpu_recovery_action", "action") == [("none", 1)]
    bench.health(recovery_action="reset")
    assert now("gpu_recovery_action", "action") == [("reset", 1)]
    bench.enumerate(info(0, vbios_version="93.00"))
    assert now("gpu_info", "vbios_version") == [("93.00", 1)]
    bench.store.apply(FaultFrame("GPU-0", 0, "sample", "lost", FaultReason.LOST))
    assert now("gpu_process_memory_used_bytes", "process") == []
    assert now("gpu_clock_max_hertz", "clock") == []
    bench.advance(60)
    bench.sample()
    assert now("gpu_clock_max_hertz", "clock")


def test_each_format_keeps_its_own() -> None:
    bench = full()
    page = Page(bench.store)
    for _ in range(2):
        assert not rendered(bench, page=page).endswith("# EOF\n")
        text = rendered(bench, "application/openmetrics-text; version=1.0.0", page)
        assert text.count("# EOF") == 1
        assert list(openmetrics(text))


@pytest.mark.parametrize("version", ["x", "", "1.", "9" * 50, "1.0.0; escaping=x"])
def test_an_odd_accept_header_gets_a_page(version) -> None:
    bench = full()
    assert "gpu_up{" in rendered(bench, f"application/openmetrics-text; version={version}")


def test_what_is_kept_does_not_grow_with_invented_versions_or_with_cards_that_are_gone() -> None:
    bench = full()
    page = Page(bench.store)
    rendered(bench, page=page)
    kept = len(page._kept)
    for number in range(20):
        rendered(bench, f"application/openmetrics-text; version=1.0.{number}", page)
        bench.store.apply(DevicesFrame((info(0), info(1)), (FailedDevice(number, LOST),)))
        rendered(bench, page=page)
    bench.enumerate(info(0), info(1))
    rendered(bench, page=page)
    assert len(page._kept) <= kept


def test_what_did_not_change_is_not_written_again(monkeypatch) -> None:
    bench = full()
    page = Page(bench.store)
    written: list[tuple[str, ...]] = []
    line = Series.line

    def noted(self, values, value):
        if self.metric.per_gpu:
            written.append((self.metric.name, *values))
        return line(self, values, value)

    monkeypatch.setattr(Series, "line", noted)

    def again() -> list[tuple[str, ...]]:
        written.clear()
        rendered(bench, page=page)
        return list(written)

    assert again()
    assert again() == []
    bench.processes("GPU-0", ProcessUse(7, "vllm", memory_used_bytes=5))
    bench.processes("GPU-1", ProcessUse(7, "vllm", memory_used_bytes=5))
    assert {(name, uuid) for name, _, uuid, *_ in again()} == {
        ("gpu_processes", "GPU-0"),
        ("gpu_process_memory_used_bytes", "GPU-0"),
    }
    bench.sample("GPU-0", temperature_celsius=61.0)
    touched = again()
    assert {uuid for _, _, uuid, *_ in touched} == {"GPU-0"}
    assert not [name for name, *_ in touched if "process" in name or "threshold" in name]


@pytest.mark.parametrize("seed", range(3))
def test_a_page_that_keeps_is_the_page_that_keeps_nothing(seed) -> None:
    chance = random.Random(seed)
    bench = full()
    keeps = Page(bench.store)
    process = ProcessUse(4, "ollama", memory_used_bytes=1, utilization_ratio=0.5)
    healths = [health().recovery_action, "reset"]
    moves = (
        lambda uuid: bench.sample(uuid, temperature_celsius=float(chance.randrange(3))),
        lambda uuid: bench.processes(uuid, *[process] * chance.randrange(3)),
        lambda uuid: bench.health(uuid, recovery_action=chance.choice(healths)),
        lambda uuid: bench.xid(uuid, chance.choice((31, 79))),
        lambda uuid: bench.store.apply(FaultFrame(uuid, 0, "sample", "lost", LOST)),
        lambda uuid: bench.enumerate(info(0, uuid=uuid)),
        lambda _: bench.enumerate(info(0), info(1)),
        lambda _: bench.store.apply(BackendFrame("nvml", up=False)),
        lambda _: bench.advance(chance.choice((0.5, 4, 60))),
    )
    for _ in range(60):
        chance.choice(moves)(chance.choice(("GPU-0", "GPU-1")))
        for accept in ("", "application/openmetrics-text"):
            assert of_gpus(keeps.render(accept)[0]) == of_gpus(Page(bench.store).render(accept)[0])


def of_gpus(page: bytes) -> list[bytes]:
    return [
        line for line in page.splitlines() if not re.match(rb"(# \w+ )?(python|process)_", line)
    ]


@pytest.mark.parametrize("backend_up", [True, False])
def test_promtool_has_nothing_to_say(backend_up) -> None:
    bench = full()
    if not backend_up:
        bench.store.apply(BackendFrame("nvml", up=False, reason=BackendReason.NO_PERMISSION))
    promtool = str(find().promtool)
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=rendered(bench),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_only_what_is_in_a_container_has_its_ids_on_the_page() -> None:
    bench = Bench()
    bench.sample()
    bench.processes(
        "GPU-0",
        ProcessUse(4, "vllm", "", "llm", 5, "3f1d" * 16, "b6a1"),
        ProcessUse(5, "ollama", "ollama.service", "", 5),
        ProcessUse(None, "other", memory_used_bytes=5),
    )
    ((labels, value),) = series(bench)["gpu_process_info"]
    assert (labels["pid"], labels["process"], value) == ("4", "vllm", 1)
    assert (labels["container_id"], labels["pod_uid"]) == ("3f1d" * 16, "b6a1")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_a_name_that_is_no_text_does_not_cost_the_page(accept) -> None:
    bench = Bench()
    bench.sample()
    bench.processes("GPU-0", ProcessUse(7, "half\udc80", memory_used_bytes=5))
    page = Page(bench.store).render(accept)[0].decode()
    assert 'process="half?"' in page
    assert "gpu_temperature_celsius{" in page
