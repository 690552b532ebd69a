"""The Ollama driver: against the simulated service, and against servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from remediator import http, services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ServiceError, ServiceRefused, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.processes import call, free_port, simulated_gpus, simulated_ollama
from tests.waiting import poll


def driver(url: str, *, timeout: float = 20.0) -> ServiceDriver:
    config = ServiceConfig("ollama", "ollama", url, {})
    return services.create(config, Timing(probe_timeout=timeout))


@pytest.fixture(scope="module")
def gpu() -> Iterator[tuple[str, str]]:
    """URL of simulated GPUs, and the uuid of the only card."""
    with simulated_gpus() as url:
        yield url, call(url + "/api/v1/gpus")["gpus"][0]["uuid"]


@pytest.fixture(scope="module")
def url(gpu: tuple[str, str]) -> Iterator[str]:
    arguments = ["--model", "llama3:8b=5GB", "--model", "qwen3=2GB", "--load-seconds", "0.1"]
    with simulated_ollama(*gpu, *arguments, "--tokens-per-second", "200") as ollama:
        yield ollama


def unload(url: str) -> None:
    for model in ("llama3:8b", "qwen3"):
        call(url + "/api/generate", {"model": model, "keep_alive": 0})


def test_probes_loads_and_asks(url: str, eventually: Callable[..., object]) -> None:
    unload(url)
    one = driver(url)
    eventually(lambda: one.probe().models == ())
    assert one.probe().state == "ready"
    one.load("llama3:8b", 20)
    (loaded,) = one.probe().models
    assert loaded.name == "llama3:8b"
    assert loaded.memory_bytes > 4 * 10**9
    assert 0 < one.canary("llama3:8b", 20) < 20


def test_a_model_without_a_tag_is_the_latest(url: str) -> None:
    one = driver(url)
    one.load("qwen3", 20)
    assert "qwen3:latest" in {model.name for model in one.probe().models}


def test_a_probe_loads_nothing(url: str, eventually: Callable[..., object]) -> None:
    unload(url)
    one = driver(url)
    eventually(lambda: one.probe().models == ())
    for _ in range(3):
        assert one.probe().models == ()


@pytest.mark.parametrize("verb", ["load", "canary"])
def test_a_model_that_is_not_there_is_an_error_with_the_servers_words(url: str, verb: str) -> None:
    with pytest.raises(ServiceError, match=r"HTTP 404.*not found"):
        getattr(driver(url), verb)("nobody:1b", 10)


def test_a_full_queue_is_an_error_not_a_timeout(gpu: tuple[str, str]) -> None:
    arguments = ["--model", "m=1GB", "--load-seconds", "0.05", "--parallel", "1"]
    arguments += ["--max-queue", "1", "--tokens-per-second", "1"]
    with simulated_ollama(*gpu, *arguments) as url:
        one = driver(url)
        one.load("m", 20)
        call(url + "/_simulator/faults", {"fault": "stall"})
        for _ in range(2):
            threading.Thread(target=_swallow, args=(url,), daemon=True).start()
        with pytest.raises(ServiceError, match=r"HTTP 503.*server busy"):
            _until_refused(one)
        assert one.probe().state == "ready", "busy is not down"


def _swallow(url: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        call(url + "/api/generate", {"model": "m", "prompt": "x", "stream": False})


def _until_refused(one: ServiceDriver) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(ServiceTimeout):
            one.canary("m", 0.3)


def test_a_stalled_server_times_out_and_still_answers_probes(gpu: tuple[str, str]) -> None:
    with simulated_ollama(*gpu, "--model", "m=1GB", "--load-seconds", "0.05") as url:
        one = driver(url)
        one.load("m", 20)
        call(url + "/_simulator/faults", {"fault": "stall"})
        with pytest.raises(ServiceTimeout):
            one.canary("m", 0.5)
        assert one.probe().state == "ready"


def test_never_two_canaries_at_once() -> None:
    asked = threading.Event()
    with server(lambda connection: asked.wait(60)) as (url, requests):
        one = driver(url)
        first = threading.Thread(target=_canary_quietly, args=(one, 60.0))
        first.start()
        poll(lambda: requests)
        with pytest.raises(ServiceTimeout, match="another canary"):
            one.canary("m", 0.2)
        asked.set()
        first.join()
        assert len(requests) == 1


def _canary_quietly(one: ServiceDriver, timeout: float) -> None:
    with contextlib.suppress(ServiceError):
        one.canary("m", timeout)


def test_nothing_that_listens_is_refused() -> None:
    one = driver(f"http://127.0.0.1:{free_port()}")
    assert one.probe().state == "refused"
    with pytest.raises(ServiceRefused):
        one.canary("m", 1)


Answer = Callable[[socket.socket], None]


def silent(connection: socket.socket) -> None:
    """Until whoever asked hangs up."""
    connection.settimeout(60)
    connection.recv(1)


def text(status: str, body: str, headers: str = "") -> Answer:
    raw = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n{body}"
    return lambda connection: connection.sendall(raw.encode())


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(999):
        time.sleep(0.05)
        connection.sendall(b" ")


def half(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    silent(connection)


@contextlib.contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every connection in its own way; yields its URL and what it was sent."""
    requests: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            requests.append(connection.recv(65536))
            answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        # accept() in another thread is woken only by a shutdown, not by a close
        listener.shutdown(socket.SHUT_RDWR)


PS = json.dumps({"models": [{"name": "m:latest", "model": "m:latest", "size_vram": 7}]})


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (silent, "silent"),
        (drip, "silent"),
        (half, "silent"),
        (text("500 Internal Server Error", "{}"), "error"),
        (text("302 Found", "", "Location: http://127.0.0.1:1/\r\n"), "error"),
        (text("200 OK", "Ollama is running"), "error"),
        (text("200 OK", "[]"), "error"),
        (text("200 OK", '{"models": 3}'), "error"),
        (text("200 OK", '{"models": [{"model": "\\ud800"}]}'), "error"),
        (text("200 OK", '{"models": [{"model": "\\ud83d\\ude00"}]}'), "ready"),
        (text("200 OK", "[" * 100_000), "error"),
        (text("200 OK", '{"models": null}'), "ready"),
        (text("200 OK", PS), "ready"),
        (lambda connection: None, "error"),
        (
            lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
            "error",
        ),
    ],
)
def test_a_probe_never_raises_and_says_what_it_saw(answer: Answer, state: str) -> None:
    with server(answer) as (url, _):
        probe = driver(url, timeout=0.4 if state == "silent" else 20).probe()
    assert probe.state == state
    assert probe.detail


def test_a_model_whose_memory_is_not_said_has_none() -> None:
    body = json.dumps({"models": [{"name": "m"}]})
    with server(text("200 OK", body)) as (url, _):
        (model,) = driver(url).probe().models
    assert (model.name, model.memory_bytes) == ("m", None)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (text("200 OK", '{"done": false}'), "not complete"),
        (text("200 OK", "[]"), "not answered as Ollama does"),
        (text("500 Internal Server Error", '{"error": "CUDA error: out of memory"}'), "out of mem"),
        (text("200 OK", "not JSON"), "not JSON"),
    ],
)
def test_a_canary_without_a_whole_answer_has_failed(answer: Answer, words: str) -> None:
    with server(answer) as (url, _), pytest.raises(ServiceError, match=words) as caught:
        driver(url).canary("m", 20)
    assert not isinstance(caught.value, ServiceTimeout)


def test_a_canary_asks_with_the_context_that_the_model_is_loaded_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked with another one Ollama ends the runner, and loads the model anew."""
    models = [
        {"model": "other:latest", "context_length": 4096},
        {"model": "m:latest", "context_length": 131072},
    ]
    body = json.dumps({"models": models, "done": True})
    sent: list[dict[str, object]] = []

    def call(method: str, url: str, **more: object) -> http.Answer:
        if method == "POST":
            sent.append(more["body"])
        return http.Answer(200, body.encode())

    monkeypatch.setattr(http, "call", call)
    one = driver("http://127.0.0.1:1")
    one.canary("m", 20)
    one.canary("unlisted", 20)
    assert [one["options"] for one in sent] == [
        {"num_predict": 1, "num_ctx": 131072},
        {"num_predict": 1},
    ]


def test_of_a_long_error_the_beginning_is_kept() -> None:
    body = json.dumps({"error": "CUDA error: out of memory" + " x" * 10_000})
    with (
        server(text("500 Internal Server Error", body)) as (url, _),
        pytest.raises(ServiceError, match="out of memory") as caught,
    ):
        driver(url).canary("m", 20)
    assert len(str(caught.value)) < 1000


def test_a_load_that_loaded_nothing_has_failed() -> None:
    with (
        server(text("200 OK", '{"done": true, "models": []}')) as (url, _),
        pytest.raises(ServiceError, match="does not list it"),
    ):
        driver(url).load("m", 20)
