"""MIG: whether a GPU is divided, and into what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from exporter.backends import _nvml_errors as codes
from exporter.backends._nvml_reader import Call, Reader
from exporter.readings import MigInstance

_NOT_THERE = codes.EMPTY | {codes.INVALID_ARGUMENT}
_LACKING = codes.TRY_ANOTHER_CALL | {codes.NOT_SUPPORTED}


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
    read = (reader.ask(f"mig_{index}", _instance(index)) for index in range(most))
    return tuple(one for one in read if one is not None)


def _instance(index: int) -> Call:
    def call(nvml: Any, handle: Any) -> MigInstance | None:
        try:
            mig = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError as error:
            if error.value in _NOT_THERE:
                return None
            raise

        def told(ask: Callable[[Any], Any]) -> Any:
            try:
                return ask(mig)
            except nvml.NVMLError as error:
                if error.value in _LACKING:
                    return None
                raise

        memory = told(lambda one: memory_info(nvml, one)) or told(nvml.nvmlDeviceGetMemoryInfo)
        return MigInstance(
            uuid=str(nvml.nvmlDeviceGetUUID(mig)),
            gpu_instance=told(nvml.nvmlDeviceGetGpuInstanceId),
            compute_instance=told(nvml.nvmlDeviceGetComputeInstanceId),
            profile=str(told(nvml.nvmlDeviceGetName) or "").rpartition("MIG ")[2],
            memory_total_bytes=memory and int(memory.total),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_free_bytes=None if memory is None else int(memory.free),
        )

    return call
