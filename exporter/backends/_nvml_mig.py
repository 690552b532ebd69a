"""MIG: whether a GPU is divided, and into what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_reader import Call, Reader
from exporter.readings import MigInstance

_NOT_THERE = codes.EMPTY | {codes.INVALID_ARGUMENT}


def memory_info(nvml: Any, handle: Any) -> Any:
    """Return the memory as newer drivers tell it: what they reserve is not in `used`."""
    return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)


CALLS: Mapping[str, tuple[Call, ...]] = MappingProxyType(
    {
        "mig_mode": (lambda n, h: n.nvmlDeviceGetMigMode(h),),
        "mig_count": (lambda n, h: n.nvmlDeviceGetMaxMigDeviceCount(h),),
    }
)


def read_mig(reader: Reader) -> tuple[dict[str, bool] | None, tuple[MigInstance, ...] | None]:
    """Return the mode (`current`, `pending`) and the MIG devices; None where there is no MIG.

    Raises:
        DeviceFault: the GPU is lost or wants a reset.
        BackendError: the driver is gone for all.
    """
    mode = reader.read("mig_mode")
    if mode is None:
        return None, None
    now, pending = (one == 1 for one in mode)
    return {"current": now, "pending": pending}, _instances(reader) if now else ()


def _instances(reader: Reader) -> tuple[MigInstance, ...] | None:
    most = reader.read("mig_count")
    if most is None:
        return None
    read = (_instance(reader, f"mig_{index}", index) for index in range(most))
    return tuple(one for one in read if one is not None)


def _instance(reader: Reader, place: str, index: int) -> MigInstance | None:
    mig = reader.ask(place, _handle(index))
    if mig is None:
        return None

    def read(what: str, call: Callable[[Any, Any], Any]) -> Any:
        return reader.ask(f"{place}_{what}", lambda nvml, _: call(nvml, mig))

    failures = len(reader.failures)
    uuid = read("uuid", lambda nvml, one: nvml.nvmlDeviceGetUUID(one))
    gpu_instance = read("gpu_instance", lambda nvml, one: nvml.nvmlDeviceGetGpuInstanceId(one))
    compute = read("compute_instance", lambda nvml, one: nvml.nvmlDeviceGetComputeInstanceId(one))
    name = read("name", lambda nvml, one: nvml.nvmlDeviceGetName(one))
    if uuid is None or len(reader.failures) > failures:
        # With half of its name it would look like another one.
        return None
    memory = read("memory", memory_info)
    if not reader.supports(f"{place}_memory"):
        memory = read("older_memory", lambda nvml, one: nvml.nvmlDeviceGetMemoryInfo(one))
    return MigInstance(
        uuid=str(uuid),
        gpu_instance=gpu_instance,
        compute_instance=compute,
        profile=str(name or "").rpartition("MIG ")[2],
        memory_total_bytes=None if memory is None else int(memory.total),
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_free_bytes=None if memory is None else int(memory.free),
    )


def _handle(index: int) -> Call:
    def call(nvml: Any, handle: Any) -> Any:
        try:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError as error:
            if error.value in _NOT_THERE:
                return None
            raise

    return call
