"""The bytes of the page are those that prometheus-client writes."""

from __future__ import annotations

import gc
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest as as_text
from prometheus_client.metrics_core import Metric as TheirFamily
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from exporter import exposition
from exporter.catalogue import METRICS, Kind, Metric
from exporter.exposition import Series
from exporter.own_process import METRICS as OWN_METRICS
from exporter.own_process import OwnProcess

LABEL = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**70), 2**70).map(float),
    st.sampled_from(
        [0.0, -0.0, 1e6, 1e7, 123456.0, 1234567.0, 1e15, 1e16, 1e21, 1e22, 0.1, 5e-324]
    ),
)
EVERY = tuple((METRICS | OWN_METRICS).values())


class Theirs:
    def __init__(self, families) -> None:
        self._families = families

    def collect(self):
        for metric, series in self._families:
            suffix = {Kind.COUNTER: "_total", Kind.INFO: "_info", Kind.GAUGE: ""}[metric.kind]
            name = metric.name.removesuffix(suffix)
            family = TheirFamily(name, metric.help, metric.kind.value, metric.unit)
            for values, value in series:
                labels = dict(zip(metric.label_names, values, strict=True))
                family.add_sample(metric.name, labels, value)
            yield family


def ours(form: exposition.Format, families) -> bytes:
    written = []
    for metric, found in families:
        series = Series(metric)
        lines = [series.line(values, value) for values, value in found]
        # In pieces, as a page with several cards is put together.
        written.append((series, [exposition.block(lines[:1]), exposition.block(lines[1:])]))
    return form.write(written)


def same(families) -> None:
    assert ours(exposition.TEXT, families) == as_text(Theirs(families))
    assert ours(exposition.OPENMETRICS, families) == as_openmetrics(Theirs(families))


@given(st.data())
def test_any_series_is_the_same(data) -> None:
    metric = data.draw(st.sampled_from(EVERY))
    values = st.tuples(*(LABEL for _ in metric.label_names))
    same([(metric, data.draw(st.lists(st.tuples(values, NUMBER), min_size=1, max_size=3)))])


def test_every_metric_is_the_same() -> None:
    same([(one, [(tuple("x" for _ in one.label_names), 12345678.5)]) for one in EVERY])


def test_a_help_text_of_odd_characters_is_the_same() -> None:
    same(
        [
            (
                Metric("gpu_odd", Kind.GAUGE, 'a "b" \\ c\nd', "", ("z", "a")),
                [(("", "", "", ""), 1.0)],
            )
        ]
    )


def test_only_openmetrics_has_an_end() -> None:
    assert exposition.OPENMETRICS.write([]) == b"# EOF\n"
    assert exposition.TEXT.write([]) == b""


def test_a_series_needs_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="gpu_up"):
        Series(METRICS["gpu_up"]).line(("0",), 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_reading_is_no_series(value) -> None:
    with pytest.raises(ValueError, match=r"gpu_up.*not a reading"):
        Series(METRICS["gpu_up"]).line(("0", "GPU-0"), value)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", exposition.TEXT),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", exposition.TEXT),
        ("application/openmetrics-text", exposition.OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; q=0.5", exposition.OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;escaping=underscores", exposition.OPENMETRICS),
        ("application/openmetrics-text;version=2.0.0", exposition.TEXT),
        ("application/openmetrics-text;version=0.0.1", exposition.TEXT),
        ("application/openmetrics-text;version=x", exposition.TEXT),
        (";;=", exposition.TEXT),
    ],
)
def test_who_asks_for_a_version_that_is_not_written_gets_text(accept, chosen) -> None:
    assert exposition.choose(accept) is chosen


def test_the_own_process_is_told_as_prometheus_client_tells_it() -> None:
    registry = CollectorRegistry(auto_describe=False)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    gc.disable()
    try:
        rows = list(OwnProcess().rows())
        theirs = list(parse(as_text(registry).decode()))
    finally:
        gc.enable()
    # Reading moves what is read.
    moves = {"process_cpu_seconds_total": 1.0, "process_open_fds": 2.0}
    moves |= {"process_virtual_memory_bytes": 2**26, "process_resident_memory_bytes": 2**26}
    seen = {}
    for family in theirs:
        for one in family.samples:
            seen[one.name, tuple(sorted(one.labels.items()))] = one.value
            name = one.name
            assert OWN_METRICS[name].help == family.documentation
            assert (OWN_METRICS[name].kind.value == "counter") == (family.type == "counter")
    told = {}
    for name, values, value in rows:
        labels = zip(OWN_METRICS[name].label_names, values, strict=True)
        told[name, tuple(sorted(labels))] = value
    assert told.keys() == seen.keys()
    for key, value in told.items():
        assert math.isclose(value, seen[key], abs_tol=moves.get(key[0], 0.01)), key


def test_what_of_the_own_process_cannot_be_read_is_absent(tmp_path) -> None:
    names = {name for name, _, _ in OwnProcess(tmp_path).rows()}
    assert not [name for name in names if name.startswith("process_")]
    assert "python_info" in names


def test_what_serves_loads_no_other_server_and_no_client() -> None:
    program = (
        "import sys, exporter.cli, exporter.serving_command;"
        "print(sorted({'prometheus_client', 'http.server', 'http.client', 'urllib.request', 'yaml',"
        " 'requests', 'flask', 'bcrypt', 'pynvml', 'ssl', 'email'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
