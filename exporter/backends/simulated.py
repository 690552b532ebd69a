"""The simulator's GPUs, over HTTP. For demonstrations and tests; `auto` never chooses it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from exporter.backends.base import (
    BackendOptions,
    Enumeration,
    HealthResult,
    ProcessesResult,
    SampleResult,
)
from exporter.errors import BackendError, ConfigError, DeviceFault
from exporter.readings import (
    CLOCK_DOMAINS,
    BackendReason,
    DeviceHealth,
    DeviceInfo,
    FaultReason,
    ProcessUse,
    Sample,
)

_SAME_NAME = (
    "temperature_celsius",
    "memory_temperature_celsius",
    "memory_total_bytes",
    "memory_used_bytes",
    "memory_free_bytes",
    "memory_reserved_bytes",
    "utilization_ratio",
    "memory_utilization_ratio",
    "power_watts",
    "power_limit_watts",
    "energy_joules",
    "performance_state",
)


class _Client:
    """One kept-alive connection; each GPU has its own, so that none waits for another."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(
                f"--simulator.url must look like http://127.0.0.1:9950, not '{url or '(empty)'}'"
            )
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=timeout
        )
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON body.

        Raises:
            TimeoutError: no answer in time.
            OSError: nobody is there.
            ValueError: what answers is not the simulator.
        """
        try:
            return self._ask(path)
        except (http.client.HTTPException, ConnectionError):
            # The other side may close an idle connection: that is no failure, asking again is.
            self.close()
        try:
            return self._ask(path)
        except http.client.HTTPException as error:
            self.close()
            raise ConnectionError(f"broken answer: {error!r}") from error

    def _ask(self, path: str) -> tuple[int, Any]:
        try:
            self._connection.request("GET", self._prefix + path)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, ValueError):
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()


class SimulatedDevice:
    """One simulated GPU; `Device` of the backend contract."""

    def __init__(self, client: _Client, body: Mapping[str, Any], xids_told: float) -> None:
        """Take what was listed of it; `xids_told` is the time of the last Xid already told."""
        self.xids_told = xids_told
        self._client = client
        self._info = _info(body)
        self._path = f"/api/v1/gpus/{self._info.uuid}"
        self._last: Mapping[str, Any] = body

    @property
    def info(self) -> DeviceInfo:
        """What was read when it was opened."""
        return self._info

    def sample(self) -> SampleResult:
        """Read the GPU.

        Raises:
            DeviceFault: it is lost, or does not answer.
            BackendError: the simulator is gone.
        """
        self._last = self._read()
        new = [one for one in self._last.get("xid_errors") or () if one["time"] > self.xids_told]
        self.xids_told = max((one["time"] for one in new), default=self.xids_told)
        return SampleResult(_sample(self._last), xids=tuple(int(one["xid"]) for one in new))

    def processes(self) -> ProcessesResult:
        """Return the processes that came with the last sample: one reading has both."""
        listed = self._last.get("processes")
        if listed is None:
            return ProcessesResult(None)
        found = (
            ProcessUse(
                pid=int(one["pid"]),
                process=str(one.get("name", "")),
                memory_used_bytes=one.get("memory_bytes"),
            )
            for one in listed
        )
        return ProcessesResult(tuple(found))

    def health(self) -> HealthResult:
        """Return what came with the last sample: the simulator has no other such reading."""
        return HealthResult(DeviceHealth(recovery_action=self._last.get("recovery_action")))

    def close(self) -> None:
        """Close its connection."""
        self._client.close()

    def _read(self) -> Mapping[str, Any]:
        try:
            status, body = self._client.get(self._path)
        except TimeoutError as error:
            raise DeviceFault(FaultReason.TIMEOUT, "the simulator does not answer") from error
        except OSError as error:
            raise BackendError(BackendReason.DRIVER_NOT_LOADED, f"simulator: {error}") from error
        except ValueError as error:
            raise DeviceFault(FaultReason.UNKNOWN, f"not JSON: {error}") from error
        if status == http.client.OK and not body.get("lost"):
            return cast("Mapping[str, Any]", body)
        said = body.get("error", "lost" if body.get("lost") else f"status {status}")
        known = set(FaultReason)
        raise DeviceFault(FaultReason(said) if said in known else FaultReason.UNKNOWN, str(said))


class SimulatedBackend:
    """All GPUs of one simulator."""

    name = "simulated"

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._devices: tuple[SimulatedDevice, ...] = ()
        self._lister = self._client()

    def open(self) -> Enumeration:
        """List the GPUs; a lost one is still listed, and says so when it is read.

        Raises:
            BackendError: there is no simulator.
        """
        body = self._list()
        # Opened again, it goes on where it was; opened first, it tells nothing of before.
        told = {device.info.uuid: device.xids_told for device in self._devices}
        self._devices = tuple(
            SimulatedDevice(self._client(), gpu, told.get(str(gpu["uuid"]), _last_xid_time(gpu)))
            for gpu in body["gpus"]
        )
        return Enumeration(
            self._devices,
            watched=tuple(
                device.info.uuid
                for device, gpu in zip(self._devices, body["gpus"], strict=True)
                if "xid_errors" in gpu
            ),
            driver_version=str(body.get("driver_version", "")),
            cuda_version=str(body.get("cuda_version", "")),
        )

    def fingerprint(self) -> object:
        """Return the uuids that are there now; None when the simulator does not say."""
        try:
            return tuple(gpu["uuid"] for gpu in self._list()["gpus"])
        except BackendError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._lister.close()
        for device in self._devices:
            device.close()

    def _client(self) -> _Client:
        return _Client(self._options.simulator_url, self._options.timeout_seconds)

    def _list(self) -> Any:
        url = self._options.simulator_url
        try:
            status, body = self._lister.get("/api/v1/gpus")
        except (OSError, ValueError) as error:
            raise BackendError(
                BackendReason.DRIVER_NOT_LOADED,
                f"no simulator at {url} ({error}): start it with `python -m simulator gpus`",
            ) from error
        if status != http.client.OK or not isinstance(body, dict) or "gpus" not in body:
            raise BackendError(
                BackendReason.UNKNOWN, f"{url} answers {status}, but it is not the simulator"
            )
        return body


def create(options: BackendOptions) -> SimulatedBackend:
    """Make the backend.

    Raises:
        ConfigError: the URL is missing or not http.
    """
    return SimulatedBackend(options)


def _info(body: Mapping[str, Any]) -> DeviceInfo:
    return DeviceInfo(
        index=int(body["index"]),
        uuid=str(body["uuid"]),
        name=str(body.get("name", "")),
        pci_bus_id=str(body.get("pci_bus_id", "")),
        vbios_version=str(body.get("vbios_version", "")),
        memory_total_bytes=body.get("memory_total_bytes"),
        power_limit_default_watts=body.get("power_limit_default_watts"),
        power_limit_min_watts=body.get("power_limit_min_watts"),
        power_limit_max_watts=body.get("power_limit_max_watts"),
        clocks_max_hertz=_clocks(body.get("clocks_max_hertz")) or {},
        temperature_limits_celsius=body.get("temperature_limits_celsius") or {},
    )


def _last_xid_time(body: Mapping[str, Any]) -> float:
    return max((float(one["time"]) for one in body.get("xid_errors") or ()), default=0.0)


def _sample(body: Mapping[str, Any]) -> Sample:
    fan = body.get("fan_speed_ratio")
    events = body.get("clock_events")
    return Sample(
        **{name: body.get(name) for name in _SAME_NAME},
        temperature_margin_celsius=_margin(body),
        clocks_hertz=_clocks(body.get("clocks_hertz")),
        clock_events=None if events is None else tuple(events),
        fan_speed_ratios=None if fan is None else (fan,),
    )


def _margin(body: Mapping[str, Any]) -> float | None:
    limit = (body.get("temperature_limits_celsius") or {}).get("slowdown")
    temperature = body.get("temperature_celsius")
    if limit is None or temperature is None:
        return None
    return round(float(limit) - float(temperature), 3)


def _clocks(body: Mapping[str, float] | None) -> dict[str, float] | None:
    if not body:
        return None
    return {name: body[name] for name in CLOCK_DOMAINS if body.get(name) is not None}
