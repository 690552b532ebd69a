"""What an NVML return code means for us (nvml.h, `nvmlReturn_t`)."""

from __future__ import annotations

from exporter.environment import Environment
from exporter.errors import BackendError
from exporter.readings import BackendReason, FaultReason

UNINITIALIZED = 1
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
OPERATING_SYSTEM = 17
LIB_RM_VERSION_MISMATCH = 18
NO_DATA = 21
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
GPU_NOT_FOUND = 28
UNKNOWN = 999

# The driver is older or newer than this call: another spelling of it may work.
TRY_ANOTHER_CALL = frozenset({FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH, DEPRECATED})
# What it says it cannot do, it cannot do until it is opened again.
NEVER = TRY_ANOTHER_CALL | {NOT_SUPPORTED}
EMPTY = frozenset({NOT_FOUND, NO_DATA})
# The connection to the driver is gone for every GPU.
BACKEND_LOST = frozenset({UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH})

DEVICE_FAULTS = {
    GPU_IS_LOST: FaultReason.LOST,
    GPU_NOT_FOUND: FaultReason.LOST,
    RESET_REQUIRED: FaultReason.RESET_REQUIRED,
}

_WORDS = {
    NO_PERMISSION: "no_permission",
    TIMEOUT: "timeout",
    11: "irq_issue",
    14: "corrupted_inforom",
    OPERATING_SYSTEM: "operating_system",
    UNKNOWN: "unknown",
}

_BACKEND_REASONS = {
    NO_PERMISSION: BackendReason.NO_PERMISSION,
    DRIVER_NOT_LOADED: BackendReason.DRIVER_NOT_LOADED,
    LIBRARY_NOT_FOUND: BackendReason.LIBRARY_MISSING,
    LIB_RM_VERSION_MISMATCH: BackendReason.VERSION_MISMATCH,
    OPERATING_SYSTEM: BackendReason.NOT_IN_CONTAINER,
    UNINITIALIZED: BackendReason.DRIVER_NOT_LOADED,
}

_REMEDIES = {
    BackendReason.LIBRARY_MISSING: "install the NVIDIA driver, or add its library directory",
    BackendReason.DRIVER_NOT_LOADED: "load the NVIDIA kernel driver (modprobe nvidia)",
    BackendReason.VERSION_MISMATCH: "the driver was upgraded under a running system: reboot",
    BackendReason.NOT_IN_CONTAINER: "give the container the GPUs, or recreate it if it had them",
    BackendReason.NO_PERMISSION: "let this user open /dev/nvidiactl and /dev/nvidia*",
    BackendReason.UNKNOWN: "run `gpu-exporter doctor`",
}


def word(code: int) -> str:
    """One word for the `reason` label of `gpu_exporter_collect_errors_total`."""
    return _WORDS.get(code, f"nvml_{code}")


def device_fault(code: int) -> FaultReason:
    """Return the fault of a GPU on which nothing could be read because of `code`."""
    if code in DEVICE_FAULTS:
        return DEVICE_FAULTS[code]
    return FaultReason.TIMEOUT if code == TIMEOUT else FaultReason.UNKNOWN


def backend_error(code: int, text: str, environment: Environment) -> BackendError:
    """Say why no GPU can be read.

    A library that finds no driver, or an unknown error, inside a container on a host whose
    driver runs means that the container was not given the GPUs, or lost them.
    """
    reason = _BACKEND_REASONS.get(code, BackendReason.UNKNOWN)
    outside = code in {LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED} and environment.kernel_driver()
    if (outside or code == UNKNOWN) and environment.in_container():
        reason = BackendReason.NOT_IN_CONTAINER
    return BackendError(reason, f"NVML: {text} (code {code}): {_REMEDIES[reason]}")
