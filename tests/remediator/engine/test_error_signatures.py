"""Error texts of real servers and drivers, and the class of each."""

from __future__ import annotations

import pytest

from remediator.error_signatures import ErrorClass, classify

TEXTS = {
    ("hardware", ""): [
        "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
        "CUDA error: out of memory after an uncorrectable ECC error encountered",
        "Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.",
        "NVRM: GPU at PCI:0000:01:00: GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>",
        "Xid 48",
    ],
    ("driver", ""): [
        "RuntimeError: CUDA error: initialization error",
        "CUDA driver version is insufficient for CUDA runtime version",
        "ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected",
        "Failed to initialize NVML: Driver/library version mismatch",
        "NVRM: Xid (PCI:0000:41:00): 119, Timeout after 6s of waiting for RPC response",
    ],
    ("illegal_access", ""): [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "NVRM: Xid (PCI:0000:01:00): 31, pid=1234, name=python",
    ],
    ("out_of_memory", "host"): [
        "Out of memory: Killed process 4242 (ollama) total-vm:123kB",
        "Memory cgroup out of memory: Killed process 4242 (python3)",
        "Task was killed due to the node running low on memory.",
        "ray.exceptions.OutOfMemoryError: Task was killed",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory",
        "MemoryError",
        "model requires more system memory (12.4 GiB) than is available (7.1 GiB)",
        "llama_init_from_model: failed to initialize the context: std::bad_alloc",
        "OSError: [Errno 12] Cannot allocate memory",
        "alloc_tensor_range: unable to allocate CPU buffer of size 536870912",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 512.00 MB)",
    ],
    ("out_of_memory", "gpu"): [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 1 GiB",
        "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory",
        "llama_kv_cache_init: failed to allocate buffer for kv cache",
        "unable to allocate CUDA0 buffer",
        "vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "ValueError: No available memory for the cache blocks.",
        "Free memory on device (3/79 GiB) is less than desired GPU memory utilization (0.92)",
        "Failed to load model - not enough GPU memory.",
        "Prefill out of memory. Try to lower your batch size.",
        "alloc_req_slots runs out of memory.",
        "llama-server reported out-of-memory during startup: cudaMalloc failed",
    ],
    ("runtime", ""): [
        "the launch timed out and was terminated",
        "EngineDeadError: EngineCore encountered an issue.",
        "llama-server process has terminated: exit status 2",
        "model 'qwen' not found, try pulling it first",
        "the 48 requests before yours",
        "",
    ],
}


@pytest.mark.parametrize(
    ("text", "kind", "where"),
    [(text, kind, where) for (kind, where), texts in TEXTS.items() for text in texts],
)
def test_each_text_has_its_class(text: str, kind: str, where: str) -> None:
    found = classify(text)
    assert (found.kind, found.where) == (kind, where)
    assert found.signature in text
    assert bool(found.signature) == (kind != "runtime")


@pytest.mark.parametrize("kind", ["hardware", "driver", "illegal_access", "out_of_memory"])
def test_only_a_card_or_a_driver_at_fault_is_not_mended_by_a_restart(kind: str) -> None:
    assert ErrorClass(kind).needs_hands == (kind in ("hardware", "driver"))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [79, 62, 31])
def test_an_xid_is_its_own_number_only(number: int) -> None:
    assert classify(f"NVRM: Xid (PCI:0000:01:00): {number}, pid=1").kind != "runtime"
    assert classify(f"NVRM: Xid (PCI:0000:01:00): {number}0, pid=1").kind == "runtime"
