from __future__ import annotations

import gzip
import json

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from exporter.frames import FaultFrame
from exporter.page import Page
from exporter.readings import FaultReason, ProcessUse
from exporter.web.app import ExporterApp
from tests.exporter.fakes import GIB, Bench, info


class Client:
    def __init__(self, bench: Bench) -> None:
        self.app = ExporterApp(bench.store, Page(bench.store))

    def get(self, path: str, method: str = "GET", **headers: str):
        path, _, query = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
        environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        seen = {}

        def start(status, head):
            seen.update(status=int(status[:3]), headers=dict(head))

        body = b"".join(self.app(environ, start))
        return seen["status"], seen["headers"], body

    def json(self, path: str):
        status, headers, body = self.get(path)
        assert headers["Content-Type"] == "application/json"
        return status, json.loads(body)


@pytest.fixture
def bench() -> Bench:
    made = Bench(gpus=2)
    made.sample("GPU-0", temperature_celsius=64.0, utilization_ratio=0.97)
    made.sample("GPU-1")
    made.processes("GPU-0", ProcessUse(1, "ollama", "ollama.service", "", 5))
    return made


@pytest.fixture
def client(bench) -> Client:
    return Client(bench)


def test_the_gpu_object_has_every_documented_key(client, bench) -> None:
    bench.advance(0.4)
    status, body = client.json("/api/gpu")
    gpu = body["gpu"]
    assert status == 200
    assert body["available"] is True
    assert gpu["temperature"] == 64.0
    assert gpu["utilization"] == 97.0
    assert gpu["memory"] == {
        "used_mb": 10240,
        "total_mb": 40960,
        "percent": 25.0,
        "used_bytes": 10 * GIB,
        "free_bytes": 29 * GIB,
        "total_bytes": 40 * GIB,
    }
    assert gpu["power"] == {
        "draw_w": 210.0,
        "limit_w": 400.0,
        "default_limit_w": 400.0,
        "min_limit_w": 100.0,
        "max_limit_w": 400.0,
    }
    assert gpu["clocks"] == {"graphics_mhz": 1200, "memory_mhz": 1200}
    assert gpu["fan_speed"] == 60.0
    assert (gpu["health"], gpu["error"], gpu["error_message"]) == ("healthy", "none", "")
    assert gpu["age_seconds"] == 0.4
    assert gpu["timestamp"] == pytest.approx(bench.clock.time() - 0.4)
    assert gpu["thresholds"]["temperature_celsius"] == {
        "warning": 83,
        "critical": 85,
        "shutdown": 90,
    }
    assert gpu["thresholds"]["memory_bytes"] == {"warning": 36 * GIB, "critical": 38 * GIB}
    assert gpu["thresholds"]["saturation"] == {"ratio": 0.99, "seconds": 30}
    assert gpu["saturated_seconds"] == 0.0
    assert gpu["processes"][0]["unit"] == "ollama.service"


def test_all_gpus_and_one_by_uuid_or_index(client) -> None:
    status, body = client.json("/api/gpus")
    assert (status, body["backend"], len(body["gpus"])) == (200, "nvml", 2)
    assert client.json("/api/gpu/1")[1]["gpu"]["uuid"] == "GPU-1"
    assert client.json("/api/gpu/GPU-1")[1]["gpu"]["index"] == 1
    assert client.json("/api/gpu/7")[0] == 404
    assert client.json("/api/gpu/None")[0] == 404


def test_the_driver_s_own_words_come_with_their_remedy(client, bench) -> None:
    gpu = client.json("/api/gpu")[1]["gpu"]
    assert (gpu["recovery_action"], gpu["xid_errors"]) == (None, [])
    bench.health(recovery_action="reset")
    bench.xid("GPU-0", 79)
    bench.xid("GPU-0", 4711)
    gpu = client.json("/api/gpu")[1]["gpu"]
    assert gpu["recovery_action"] == "reset"
    known, new = gpu["xid_errors"]
    assert known == {
        "xid": 79,
        "count": 1,
        "last_timestamp": bench.clock.time(),
        "meaning": "GPU has fallen off the bus",
        "severity": "critical",
        "action": "reboot_host",
        "contested": "",
    }
    assert (new["xid"], new["severity"], new["action"]) == (4711, "unknown", "unknown")
    bench.enumerate(info(0), watched=[])
    assert client.json("/api/gpu")[1]["gpu"]["xid_errors"] is None


def test_a_lost_gpu_stays_in_the_list_with_nulls(client, bench) -> None:
    bench.store.apply(FaultFrame("GPU-1", 0, "sample", "lost", FaultReason.LOST))
    gpu = client.json("/api/gpus")[1]["gpus"][1]
    assert (gpu["up"], gpu["fault"], gpu["health"]) == (False, "lost", "critical")
    assert gpu["error"] == "critical_health"
    for key in ("temperature", "utilization", "fan_speed", "saturated_seconds", "processes"):
        assert gpu[key] is None
    assert set(gpu["memory"].values()) == {None}


def test_an_index_means_the_card_that_has_it_now(client, bench) -> None:
    bench.enumerate(info(0, uuid="GPU-1"))
    assert client.json("/api/gpu/0")[1]["gpu"]["uuid"] == "GPU-1"


def test_with_no_gpu_it_says_so() -> None:
    client = Client(Bench(gpus=0))
    for path in ("/api/gpu", "/api/gpus", "/api/gpu/0"):
        status, body = client.json(path)
        assert status == 503
        assert body == {"available": False, "error": "GPU stats not available"}


def test_history(client, bench) -> None:
    for _ in range(5):
        bench.advance(1)
        bench.sample("GPU-0")
    status, body = client.json("/api/gpu/0/history?window=3")
    assert status == 200
    assert body["uuid"] == "GPU-0"
    assert len(body["samples"]) == 4
    assert set(body["samples"][0]) == {
        "timestamp",
        "temperature",
        "utilization",
        "memory_used_bytes",
        "power_draw_w",
    }


@pytest.mark.parametrize("window", ["0", "-1", "301", "x", "nan"])
def test_a_window_that_makes_no_sense_is_refused(client, window) -> None:
    assert client.json(f"/api/gpu/0/history?window={window}")[0] == 400


def test_metrics_by_negotiation_and_gzip(client) -> None:
    status, headers, body = client.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"gpu_up{" in body
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, packed = client.get("/metrics", accept=accept, accept_encoding="br, gzip;q=0.5")
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert list(openmetrics(gzip.decompress(packed).decode()))
    _, headers, _ = client.get("/metrics", accept_encoding="gzip;q=0")
    assert "Content-Encoding" not in headers


def test_health_readiness_and_landing() -> None:
    bench = Bench(gpus=0)
    client = Client(bench)
    assert client.get("/-/healthy")[0] == 200
    status, _, body = client.get("/-/ready")
    assert status == 503
    assert b"has not been opened" in body
    bench.enumerate(info(0))
    bench.sample()
    assert client.get("/-/ready")[0] == 200
    status, headers, body = client.get("/")
    assert headers["Content-Type"].startswith("text/html")
    assert b"/metrics" in body


def test_what_is_not_there_and_what_is_not_allowed(client) -> None:
    assert client.get("/nothing")[0] == 404
    status, headers, _ = client.get("/metrics", method="POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, headers, body = client.get("/metrics", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000
