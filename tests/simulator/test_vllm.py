"""The service answers in vLLM's dialect: paths, bodies, statuses, texts, metrics."""

import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from simulator.clock import SystemClock
from simulator.errors import UsageError
from simulator.llm.models import Model
from simulator.vllm.service import Reservation, Service, reserve
from tests.simulator.services import FakeCard
from tests.simulator.support import GIB, call, serving
from tests.waiting import poll

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
RESERVATION = Reservation(40 * GIB, 36 * GIB, 20 * GIB)


class Running:
    """A service on a free port, with a card that is only played."""

    def __init__(self, address: tuple[str, int], service: Service, card: FakeCard) -> None:
        self.address, self.service, self.card = address, service, card

    def get(self, path: str) -> tuple[int, Any]:
        return call(self.address, "GET", path)

    def post(self, path: str, body: Any, timeout: float = 20) -> tuple[int, Any]:
        return call(self.address, "POST", path, body, timeout=timeout)

    def complete(self, tokens: int = 3, timeout: float = 20) -> tuple[int, Any]:
        body = {"model": MODEL, "prompt": "how are you", "max_tokens": tokens}
        return self.post("/v1/completions", body, timeout)

    def report(self) -> tuple[int, float]:
        self.service.reporter.report()
        return self.card.reports[-1]

    def metric(self, name: str, **labels: str) -> float:
        wanted = {"model_name": MODEL, "engine": "0"} | labels
        text = self.get("/metrics")[1]
        (value,) = [
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels == wanted
        ]
        return value

    def hold_open(self, tokens: int = 100_000) -> HTTPConnection:
        """Start a long stream and return once its first token is there."""
        connection = HTTPConnection(*self.address, timeout=20)
        body = {"prompt": "hi", "max_tokens": tokens, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body))
        connection.getresponse().readline()
        return connection


@pytest.fixture
def reservation() -> Reservation:
    return RESERVATION


@pytest.fixture
def vllm(reservation: Reservation) -> Iterator[Running]:
    card = FakeCard()
    service = Service(
        Model(MODEL, 16 * GIB),
        reservation,
        parallel=2,
        tokens_per_second=200,
        card=card,
        clock=SystemClock(),
        dev_mode=True,
    )
    service.engine.start()
    with serving(service.app) as address:
        yield Running(address, service, card)


def test_it_says_who_it_is(vllm: Running) -> None:
    assert vllm.get("/health") == (200, "")
    assert vllm.get("/version") == (200, {"version": "0.33.0"})
    status, body = vllm.get("/v1/models")
    assert (status, body["object"]) == (200, "list")
    assert [one["id"] for one in body["data"]] == [MODEL]
    assert body["data"][0]["owned_by"] == "vllm"


def test_a_completion_has_text_and_usage(vllm: Running) -> None:
    status, body = vllm.complete(tokens=4)
    assert (status, body["object"], body["model"]) == (200, "text_completion", MODEL)
    (choice,) = body["choices"]
    assert len(choice["text"].split()) == 4
    assert choice["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


def test_without_a_limit_a_completion_makes_16_tokens(vllm: Running) -> None:
    body = vllm.post("/v1/completions", {"prompt": "hi"})[1]
    assert body["usage"]["completion_tokens"] == 16


def test_a_chat_has_a_message(vllm: Running) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    status, answer = vllm.post("/v1/chat/completions", body)
    assert (status, answer["object"]) == (200, "chat.completion")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    limited = vllm.post("/v1/chat/completions", body | {"max_completion_tokens": 2})[1]
    assert limited["usage"]["completion_tokens"] == 2
    assert limited["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_is_events_until_done(vllm: Running, path: str) -> None:
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    status, text = vllm.post(path, body | {"stream": True})
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert (status, events[-1]) == (200, "[DONE]")
    parts = [json.loads(event) for event in events[:-1]]
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None, None, "length"]
    assert len({part["id"] for part in parts}) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "says"),
    [
        ("/v1/completions", {"model": "x", "prompt": "hi"}, 404, "NotFoundError", "`x` does not"),
        ("/v1/completions", {"model": MODEL}, 400, "BadRequestError", "prompt"),
        ("/v1/completions", "nonsense", 400, "BadRequestError", "JSON"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400, "BadRequestError", "at least 1"),
        ("/v1/completions", {"prompt": "x", "max_tokens": "9"}, 400, "BadRequestError", "integer"),
        ("/v1/chat/completions", {"messages": "hi"}, 400, "BadRequestError", "messages"),
        ("/nothing", {}, 404, "Not Found", "Not Found"),
        ("/health", {}, 405, "Method Not Allowed", "Method Not Allowed"),
    ],
)
def test_a_wrong_request_is_told_so(
    vllm: Running, path: str, body: Any, status: int, kind: str, says: str
) -> None:
    answer = vllm.post(path, body)
    error = answer[1]["error"]
    assert (answer[0], error["code"], error["type"]) == (status, status, kind)
    assert says in error["message"]


def test_progress_is_counted_while_a_request_runs(vllm: Running) -> None:
    connection = vllm.hold_open()
    assert vllm.metric("vllm:num_requests_running") == 1
    before = vllm.metric("vllm:generation_tokens_total")
    steps = vllm.metric("vllm:iteration_tokens_total_count")
    poll(lambda: vllm.metric("vllm:generation_tokens_total") > before)
    poll(lambda: vllm.metric("vllm:iteration_tokens_total_count") > steps)
    assert vllm.metric("vllm:kv_cache_usage_perc") > 0
    connection.close()
    poll(lambda: vllm.metric("vllm:request_success_total", finished_reason="abort") == 1)
    assert vllm.metric("vllm:num_requests_running") == 0
    assert vllm.metric("vllm:kv_cache_usage_perc") == 0


def test_what_is_finished_is_counted_once(vllm: Running) -> None:
    vllm.complete(tokens=5)
    assert vllm.metric("vllm:prompt_tokens_total") == 4
    assert vllm.metric("vllm:generation_tokens_total") == 5
    assert vllm.metric("vllm:iteration_tokens_total_count") == 5
    assert vllm.metric("vllm:iteration_tokens_total_sum") == 4 + 5
    assert vllm.metric("vllm:request_success_total", finished_reason="length") == 1
    assert vllm.metric("vllm:num_preemptions_total") == 0


def test_requests_beyond_the_slots_wait_and_are_served(vllm: Running) -> None:
    held = [vllm.hold_open() for _ in range(2)]
    answers: list[tuple[int, Any]] = []
    caller = threading.Thread(target=lambda: answers.append(vllm.complete()), daemon=True)
    caller.start()
    poll(lambda: vllm.metric("vllm:num_requests_waiting") == 1)
    for connection in held:
        connection.close()
    caller.join(20)
    assert answers[0][0] == 200


def test_memory_is_held_from_the_start_and_load_follows_requests(vllm: Running) -> None:
    assert vllm.report() == (36 * GIB, 0.0)
    connection = vllm.hold_open()
    assert vllm.report() == (36 * GIB, 0.5)
    assert vllm.card.power_ratio == 0.5
    connection.close()
    poll(lambda: vllm.report() == (36 * GIB, 0.0))


def test_load_between_two_reports_is_not_missed(vllm: Running) -> None:
    vllm.complete()
    assert vllm.report() == (36 * GIB, 0.5)
    assert vllm.report() == (36 * GIB, 0.0)


@pytest.mark.parametrize("reservation", [Reservation(40 * GIB, 36 * GIB, 100 * 128 * 1024)])
def test_a_small_cache_means_preemptions(vllm: Running) -> None:
    callers = [threading.Thread(target=vllm.complete, args=(90,), daemon=True) for _ in range(2)]
    for caller in callers:
        caller.start()
    poll(lambda: vllm.metric("vllm:num_preemptions_total") >= 1)
    for caller in callers:
        caller.join(20)
    assert vllm.metric("vllm:request_success_total", finished_reason="length") == 2


def test_stalled_it_is_healthy_and_holds_requests_without_progress(vllm: Running) -> None:
    connection = vllm.hold_open()
    assert vllm.post("/_simulator/faults", {"fault": "stall"}) == (200, {"id": "stall"})
    with pytest.raises(TimeoutError):
        vllm.complete(timeout=0.3)
    before = vllm.metric("vllm:iteration_tokens_total_count")
    connection.close()
    with pytest.raises(TimeoutError):
        vllm.complete(timeout=0.3)
    assert vllm.get("/health") == (200, "")
    assert vllm.metric("vllm:iteration_tokens_total_count") == before
    assert vllm.metric("vllm:num_requests_running") == 1, "a hung engine notices no hang-up"
    assert vllm.metric("vllm:num_requests_waiting") == 2
    assert vllm.report() == (36 * GIB, 1.0)
    assert vllm.card.power_ratio == 0.1
    assert call(vllm.address, "DELETE", "/_simulator/faults")[1] == {"cleared": 1}
    assert vllm.complete()[0] == 200
    assert vllm.metric("vllm:num_requests_running") == 0


def test_out_of_memory_is_a_500_with_pytorchs_text(vllm: Running) -> None:
    vllm.post("/_simulator/faults", {"fault": "out_of_memory"})
    status, body = vllm.complete()
    assert (status, body["error"]["type"]) == (500, "InternalServerError")
    assert body["error"]["message"].startswith("CUDA out of memory. Tried to allocate ")
    assert vllm.get("/health")[0] == 200
    call(vllm.address, "DELETE", "/_simulator/faults/out_of_memory")
    assert vllm.complete()[0] == 200


def test_a_lost_card_kills_the_engine_for_good(vllm: Running) -> None:
    vllm.card.lost = True
    assert vllm.get("/health")[0] == 200, "without work nobody notices"
    status, body = vllm.complete()
    assert status == 500
    assert body["error"]["message"] == "The server had an error while processing your request."
    assert vllm.get("/health")[0] == 503
    vllm.card.lost = False
    assert vllm.complete()[0] == 500


def test_a_stream_that_breaks_says_so_in_the_stream(vllm: Running) -> None:
    vllm.card.lost = True
    text = vllm.post("/v1/completions", {"prompt": "hi", "stream": True})[1]
    first, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert (json.loads(first)["error"]["code"], done) == (500, "[DONE]")


def sleep_state(vllm: Running) -> list[float]:
    states = ("awake", "weights_offloaded", "discard_all")
    return [vllm.metric("vllm:engine_sleep_state", sleep_state=state) for state in states]


def test_asleep_it_gives_its_memory_back_and_drops_what_it_did(vllm: Running) -> None:
    assert sleep_state(vllm) == [1, 0, 0]
    answers: list[tuple[int, Any]] = []
    caller = threading.Thread(target=lambda: answers.append(vllm.complete(100_000)), daemon=True)
    caller.start()
    poll(lambda: vllm.metric("vllm:num_requests_running") == 1)
    assert vllm.post("/sleep", None) == (200, {"status": "sleeping", "level": 1})
    caller.join(20)
    assert answers[0][1]["choices"][0]["finish_reason"] == "abort"
    assert vllm.get("/is_sleeping") == (200, {"is_sleeping": True})
    assert sleep_state(vllm) == [0, 1, 0]
    poll(lambda: vllm.report() == (0, 0.0))
    with pytest.raises(TimeoutError):
        vllm.complete(timeout=0.3)
    assert vllm.post("/wake_up", None)[1]["status"] == "awake"
    assert sleep_state(vllm) == [1, 0, 0]
    assert vllm.complete()[0] == 200
    assert vllm.report()[0] == 36 * GIB


def test_paused_it_keeps_its_memory(vllm: Running) -> None:
    vllm.post("/sleep?level=0", None)
    assert (sleep_state(vllm), vllm.report()[0]) == ([0, 0, 0], 36 * GIB)
    assert vllm.post("/sleep?level=3", None)[0] == 400


def test_sleep_is_not_for_everybody() -> None:
    service = Service(
        Model(MODEL, 16 * GIB),
        RESERVATION,
        parallel=2,
        tokens_per_second=200,
        card=FakeCard(),
        clock=SystemClock(),
    )
    with serving(service.app) as address:
        assert call(address, "GET", "/is_sleeping")[0] == 404
        assert call(address, "POST", "/sleep")[0] == 404


def test_memory_is_a_share_of_the_card_less_the_weights() -> None:
    asked = reserve(
        Model(MODEL, 16 * GIB), utilization=0.9, total_bytes=40 * GIB, room_bytes=39 * GIB
    )
    assert asked == Reservation(40 * GIB, 36 * GIB, 20 * GIB)


@pytest.mark.parametrize(
    ("size", "room", "says"),
    [
        (
            16,
            30,
            r"Free memory on device cuda:0 \(30.00/40.00 GiB\) on startup is less than desired",
        ),
        (36, 39, "No available memory for the cache blocks"),
    ],
)
def test_memory_that_is_not_there_stops_the_start(size: int, room: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        reserve(
            Model(MODEL, size * GIB), utilization=0.9, total_bytes=40 * GIB, room_bytes=room * GIB
        )
