"""Stand-ins for time, GPUs, workers and the simulator."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from exporter.backends.base import (
    Enumeration,
    HealthResult,
    ProcessesResult,
    SampleResult,
    XidEvent,
)
from exporter.config import ExpectedGpus
from exporter.frames import (
    BackendFrame,
    DevicesFrame,
    HealthFrame,
    ProcessesFrame,
    SampleFrame,
    XidFrame,
)
from exporter.gpu_state import Deadlines
from exporter.inventory import Inventory
from exporter.policy import Policy
from exporter.readings import (
    CLOCK_DOMAINS,
    DeviceHealth,
    DeviceInfo,
    MigInstance,
    NvLink,
    ProcessUse,
    Sample,
)
from exporter.store import Store
from exporter.xid_ledger import XidLedger

GIB = 2**30


class FakeClock:
    """Time that moves when told, or when somebody waits."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    def wait(self, event: threading.Event, timeout: float) -> bool:
        self.now += max(0.0, timeout)
        return event.is_set()


def info(index: int = 0, **more) -> DeviceInfo:
    values = {
        "name": "NVIDIA A100-SXM4-40GB",
        "pci_bus_id": f"00000000:{index:02X}:00.0",
        "vbios_version": "92.00",
        "memory_total_bytes": 40 * GIB,
        "power_limit_default_watts": 400.0,
        "power_limit_min_watts": 100.0,
        "power_limit_max_watts": 400.0,
        "pcie_link_generation_max": 4,
        "pcie_link_width_max": 16,
        "clocks_max_hertz": dict.fromkeys(CLOCK_DOMAINS, 1.4e9),
        "temperature_limits_celsius": {"slowdown": 89.0, "shutdown": 92.0},
    }
    return DeviceInfo(**{"index": index, "uuid": f"GPU-{index}", **values, **more})


def sample(**more) -> Sample:
    values = {
        "temperature_celsius": 60.0,
        "temperature_margin_celsius": 29.0,
        "memory_temperature_celsius": 65.0,
        "memory_total_bytes": 40 * GIB,
        "memory_used_bytes": 10 * GIB,
        "memory_free_bytes": 29 * GIB,
        "memory_reserved_bytes": 1 * GIB,
        "utilization_ratio": 0.5,
        "memory_utilization_ratio": 0.25,
        "encoder_utilization_ratio": 0.1,
        "decoder_utilization_ratio": 0.0,
        "power_watts": 210.0,
        "power_limit_watts": 400.0,
        "energy_joules": 1234.5,
        "clocks_hertz": dict.fromkeys(CLOCK_DOMAINS, 1.2e9),
        "clock_events": ("sw_power_cap",),
        "fan_speed_ratios": (0.4, 0.6),
        "performance_state": 0,
    }
    return Sample(**{**values, **more})


def health(**more) -> DeviceHealth:
    values = {
        "clock_event_seconds": {"sw_power_cap": 12.5, "hw_thermal_slowdown": 0.0},
        "ecc_errors": {
            "corrected": {"dram": 3, "sram": 0},
            "uncorrected": {"dram": 0, "sram": 0},
        },
        "remapped_rows": {"correctable": 1, "uncorrectable": 0},
        "row_remap_pending": False,
        "row_remap_failure": False,
        "retired_pages": {"single_bit": 0, "double_bit": 2},
        "recovery_action": "none",
        "pcie_link_generation": 4,
        "pcie_link_width": 16,
        "pcie_replays": 0,
        "pcie_errors": {"fatal": 0},
        "pcie_bytes_per_second": {"transmit": 2048, "receive": 1024},
        "nvlinks": (NvLink(0, up=True, errors={"replay": 1, "crc": 0}), NvLink(1, up=False)),
        "nvlink_bytes": {"transmit": 4096, "receive": 8192},
        "mig_mode": {"current": True, "pending": True},
        "mig_instances": (MigInstance("MIG-0", 1, 0, "1g.5gb", 5 * GIB, 1 * GIB, 4 * GIB),),
    }
    return DeviceHealth(**{**values, **more})


class Bench:
    """A store with a hand on its clock and its frames."""

    def __init__(
        self,
        policy: Policy | None = None,
        expected: ExpectedGpus = "auto",
        inventory: Inventory | None = None,
        gpus: int = 1,
        ledger: XidLedger | None = None,
    ) -> None:
        self.clock = FakeClock()
        deadlines = Deadlines.for_intervals(1.0, 15.0, 30.0, 5.0)
        self.store = Store(
            "nvml",
            policy or Policy(),
            deadlines,
            inventory or Inventory(expected, None),
            ledger or XidLedger(None, (48, 79)),
            self.clock,
        )
        if gpus:
            self.enumerate(*(info(index) for index in range(gpus)))

    def enumerate(self, *infos: DeviceInfo, failed=(), watched=None) -> None:
        self.store.apply(BackendFrame("nvml", up=True, driver_version="580.1", cuda_version="13.0"))
        uuids = tuple(one.uuid for one in infos) if watched is None else tuple(watched)
        self.store.apply(DevicesFrame(tuple(infos), tuple(failed), 0.02, uuids))

    def sample(self, uuid: str = "GPU-0", errors: tuple[str, ...] = (), **more) -> None:
        now = self.clock.monotonic()
        self.store.apply(SampleFrame(uuid, self.clock.time(), now, sample(**more), 0.003, errors))

    def processes(self, uuid: str, *uses: ProcessUse) -> None:
        self.store.apply(ProcessesFrame(uuid, self.clock.monotonic(), uses, len(uses), 0.005))

    def health(self, uuid: str = "GPU-0", errors: tuple[str, ...] = (), **more) -> None:
        now = self.clock.monotonic()
        self.store.apply(HealthFrame(uuid, now, health(**more), 0.002, errors))

    def xid(self, uuid: str, xid: int) -> None:
        self.store.apply(XidFrame(uuid, self.clock.time(), xid))

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds

    def gpu(self, uuid: str = "GPU-0"):
        return next(view for view in self.store.snapshot().gpus if view.info.uuid == uuid)


class FakeDevice:
    """A GPU whose answers are functions that a test replaces."""

    def __init__(self, device_info: DeviceInfo) -> None:
        self._info = device_info
        self.on_sample: Callable[[], SampleResult] = lambda: SampleResult(sample())
        self.on_processes: Callable[[], ProcessesResult | list[ProcessUse] | None] = list
        self.on_health: Callable[[], HealthResult] = lambda: HealthResult(health())

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def sample(self) -> SampleResult:
        return self.on_sample()

    def processes(self):
        found = self.on_processes()
        if isinstance(found, ProcessesResult):
            return found
        return ProcessesResult(None if found is None else tuple(found))

    def health(self) -> HealthResult:
        return self.on_health()


class FakeEvents:
    """What the driver tells by itself: what a test puts in the queue."""

    def __init__(self) -> None:
        self.queue: queue.Queue[XidEvent | Exception] = queue.Queue()
        self.waits = 0
        self.opened = 0
        self.closed = 0

    def open(self) -> bool:
        self.opened += 1
        return True

    def wait(self, seconds: float) -> tuple[XidEvent, ...]:
        self.waits += 1
        try:
            found = self.queue.get(timeout=min(seconds, 0.05))
        except queue.Empty:
            return ()
        if isinstance(found, Exception):
            raise found
        return (found,)

    def close(self) -> None:
        self.closed += 1


class FakeBackend:
    """A backend over such GPUs, which counts how often it is opened."""

    name = "nvml"

    def __init__(self, *devices: FakeDevice) -> None:
        self.devices = devices
        self.opened = 0
        self.closed = 0
        self.error: Exception | None = None
        self.mark: object = "as before"
        self.events: FakeEvents | None = None

    def open(self) -> Enumeration:
        self.opened += 1
        if self.error is not None:
            raise self.error
        watched = tuple(one.info.uuid for one in self.devices) if self.events else ()
        return Enumeration(
            self.devices, driver_version="580.1", events=self.events, watched=watched
        )

    def fingerprint(self) -> object:
        return self.mark

    def close(self) -> None:
        self.closed += 1


class SimulatorServer:
    """A small server that speaks the simulator's documented dialect."""

    def __init__(self, gpus: int = 2) -> None:
        self.gpus = {f"GPU-sim-{i}": simulated_gpu(i) for i in range(gpus)}
        self.blocked: dict[str, threading.Event] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def block(self, uuid: str) -> threading.Event:
        """Let reads of a GPU hang until the returned event is set."""
        return self.blocked.setdefault(uuid, threading.Event())

    def close(self) -> None:
        for event in self.blocked.values():
            event.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str):
        if path == "/api/v1/gpus":
            gpus = list(self.gpus.values())
            return 200, {"driver_version": "580.sim", "cuda_version": "13.0", "gpus": gpus}
        uuid = path.rpartition("/")[2]
        if uuid in self.blocked:
            self.blocked[uuid].wait(30)
        gpu = self.gpus.get(uuid)
        if gpu is None:
            return 404, {"error": "unknown"}
        return (503, {"error": "lost"}) if gpu["lost"] else (200, gpu)

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = outer.answer(self.path)
                payload = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args) -> None:
                pass

        return Handler


def simulated_gpu(index: int) -> dict:
    return {
        "index": index,
        "uuid": f"GPU-sim-{index}",
        "name": "Simulated A100",
        "pci_bus_id": f"00000000:{index:02X}:00.0",
        "vbios_version": "92",
        "lost": False,
        "temperature_celsius": 64.0,
        "memory_temperature_celsius": 70.0,
        "memory_total_bytes": 40 * GIB,
        "memory_used_bytes": 8 * GIB,
        "memory_free_bytes": 31 * GIB,
        "memory_reserved_bytes": 1 * GIB,
        "utilization_ratio": 0.97,
        "memory_utilization_ratio": 0.3,
        "power_watts": 210.0,
        "power_limit_watts": 400.0,
        "power_limit_default_watts": 400.0,
        "power_limit_min_watts": 100.0,
        "power_limit_max_watts": 400.0,
        "energy_joules": 5000.0,
        "clocks_hertz": dict.fromkeys(CLOCK_DOMAINS, 1.2e9),
        "clocks_max_hertz": dict.fromkeys(CLOCK_DOMAINS, 1.4e9),
        "fan_speed_ratio": 0.4,
        "performance_state": 0,
        "temperature_limits_celsius": {"slowdown": 89.0, "shutdown": 92.0},
        "processes": [{"pid": 1, "name": "ollama", "memory_bytes": 7 * GIB}],
        "xid_errors": [],
    }
