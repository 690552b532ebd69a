"""Which format and which coding a client gets."""

from __future__ import annotations

import gzip
import json

import pytest

from serving.answer import accepts_gzip, preferred_format
from tests.exporter.web_page import application
from tests.serving.door import Door

OPENMETRICS = "application/openmetrics-text"
# What Prometheus of that version sends.
PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROTOBUF_FIRST = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    + PROMETHEUS_3
)


@pytest.mark.parametrize(
    ("accept", "begins"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; version=0.0.4"),
        ("application/json", "text/plain; version=0.0.4"),
        (PROMETHEUS_2_42, f"{OPENMETRICS}; version=1.0.0"),
        (PROMETHEUS_3, f"{OPENMETRICS}; version=1.0.0"),
        (PROTOBUF_FIRST, f"{OPENMETRICS}; version=1.0.0"),
        (OPENMETRICS, f"{OPENMETRICS}; version=1.0.0"),
        (f"text/plain, {OPENMETRICS};q=0.5", "text/plain; version=0.0.4"),
        (f"{OPENMETRICS};q=0, text/plain;q=0.1", "text/plain; version=0.0.4"),
        (f"text/plain;q=0.5, {OPENMETRICS};q=0.9", f"{OPENMETRICS}; version=1.0.0"),
        (
            f"{OPENMETRICS};version=0.0.1, text/plain;version=0.0.4;q=0.2",
            "text/plain; version=0.0.4",
        ),
        ("application/openmetrics-text;version=x, ;;,=;q=1", "text/plain; version=0.0.4"),
    ],
)
def test_the_format_with_the_greatest_weight_is_served(accept, begins) -> None:
    door = Door(app=application())
    try:
        status, headers, body = door.get(headers={"Accept": accept})
    finally:
        door.close()
    assert status == 200
    assert headers["Content-Type"].startswith(begins)
    assert body.endswith(b"# EOF\n") is begins.startswith(OPENMETRICS)
    assert {"Accept", "Accept-Encoding"} <= set(headers["Vary"].split(", "))


def test_a_part_of_no_weight_is_not_preferred() -> None:
    assert preferred_format("text/plain;q=0") == ""
    assert preferred_format("text/plain;q=7") == ""


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*, gzip;q=0", False),
        ("*;q=0", False),
        ("gzip;q=nonsense", False),
        ("gzip;q=nan", False),
    ],
)
def test_gzip_only_where_it_is_taken(header, accepted) -> None:
    assert accepts_gzip(header) is accepted


def test_what_is_long_is_packed_and_what_is_short_is_not() -> None:
    door = Door(app=application())
    taken = {"Accept-Encoding": "gzip"}
    try:
        for path in ("/metrics", "/api/gpus"):
            plain = door.get(path)[2]
            _, headers, packed = door.get(path, taken)
            assert headers["Content-Encoding"] == "gzip"
            assert len(packed) == int(headers["Content-Length"])
            assert len(packed) < len(plain) / 2
        assert len(json.loads(gzip.decompress(packed))["gpus"]) == 2
        assert "Content-Encoding" not in door.get("/-/healthy", taken)[1]
    finally:
        door.close()
