"""The service answers in Ollama's dialect: paths, bodies, statuses, texts."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from typing import Any

import pytest

from simulator.clock import SystemClock
from simulator.errors import BadRequestError, UsageError
from simulator.ollama.models import (
    FOREVER_SECONDS,
    keep_alive_seconds,
    keep_alive_setting,
    parse_models,
)
from simulator.ollama.scheduler import Limits
from simulator.ollama.service import Service
from tests.simulator.services import FakeCard
from tests.simulator.support import GIB, call, serving
from tests.waiting import poll

MODEL = "llama3.2:3b"
PS_KEYS = {
    "name",
    "model",
    "size",
    "digest",
    "details",
    "expires_at",
    "size_vram",
    "context_length",
}


class Running:
    """A service on a free port, with a card that is only played."""

    def __init__(self, address: tuple[str, int], service: Service, card: FakeCard) -> None:
        self.address, self.service, self.card = address, service, card

    def get(self, path: str, **kwargs: Any) -> tuple[int, Any]:
        return call(self.address, "GET", path, **kwargs)

    def post(self, path: str, body: Any, **kwargs: Any) -> tuple[int, Any]:
        return call(self.address, "POST", path, body, **kwargs)

    def generate(self, tokens: int = 3, timeout: float = 20, **more: Any) -> tuple[int, Any]:
        body = {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}}
        return self.post("/api/generate", body | {"stream": False} | more, timeout=timeout)

    def loaded(self) -> list[str]:
        return [model["name"] for model in self.get("/api/ps")[1]["models"]]

    def report(self) -> tuple[int, float]:
        self.service.reporter.report()
        return self.card.reports[-1]

    def hold_open(self, tokens: int = 100_000) -> HTTPConnection:
        """Start a long stream and return once its first token is there."""
        connection = HTTPConnection(*self.address, timeout=20)
        body = {"model": MODEL, "prompt": "hi", "options": {"num_predict": tokens}}
        connection.request("POST", "/api/generate", json.dumps(body))
        connection.getresponse().readline()
        return connection


def start(**limits: Any) -> Any:
    settings = {"parallel": 2, "max_queue": 8, "load_seconds": 0.0, "keep_alive_seconds": 300.0}
    card = FakeCard()
    service = Service(
        models=parse_models([f"{MODEL}=8GiB", "phi3=2GiB"]),
        limits=Limits(**(settings | limits)),
        tokens_per_second=200,
        card=card,
        clock=SystemClock(),
        loopback=True,
    )
    return service, card


@pytest.fixture
def limits() -> dict[str, Any]:
    return {}


@pytest.fixture
def ollama(limits: dict[str, Any]) -> Iterator[Running]:
    service, card = start(**limits)
    with serving(service.app) as address:
        yield Running(address, service, card)


def test_it_says_that_it_runs(ollama: Running) -> None:
    assert ollama.get("/") == (200, "Ollama is running")
    assert call(ollama.address, "HEAD", "/") == (200, "")
    assert set(ollama.get("/api/version")[1]) == {"version"}


def test_tags_are_what_is_installed_and_ps_what_is_loaded(ollama: Running) -> None:
    assert [one["name"] for one in ollama.get("/api/tags")[1]["models"]] == [
        MODEL,
        "phi3:latest",
    ]
    assert ollama.get("/api/ps") == (200, {"models": []})
    ollama.post("/api/generate", {"model": "phi3"})
    (loaded,) = ollama.get("/api/ps")[1]["models"]
    assert set(loaded) >= PS_KEYS
    assert loaded["size"] == loaded["size_vram"] == 2 * GIB
    left = datetime.fromisoformat(loaded["expires_at"]) - datetime.now(UTC)
    assert 290 < left.total_seconds() <= 300


def test_an_empty_prompt_loads(ollama: Running) -> None:
    status, body = ollama.post("/api/generate", {"model": MODEL})
    assert (status, body["done"], body["done_reason"]) == (200, True, "load")
    assert ollama.loaded() == [MODEL]
    status, body = ollama.post("/api/chat", {"model": MODEL, "messages": []})
    assert (body["done_reason"], body["message"]["role"]) == ("load", "assistant")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("zero", [0, "0", "0s"])
def test_an_empty_prompt_with_keep_alive_0_unloads(ollama: Running, path: str, zero: Any) -> None:
    ollama.generate()
    assert ollama.loaded() == [MODEL]
    status, body = ollama.post(path, {"model": MODEL, "keep_alive": zero})
    assert (status, body["done"], body["done_reason"]) == (200, True, "unload")
    assert ollama.loaded() == []
    assert ollama.report()[0] == 0


def test_unloading_what_is_not_loaded_is_answered_just_the_same(ollama: Running) -> None:
    status, body = ollama.post("/api/generate", {"model": MODEL, "keep_alive": 0})
    assert (status, body["done_reason"]) == (200, "unload")
    assert ollama.loaded() == []


def test_a_busy_model_unloads_only_when_its_request_ends(ollama: Running) -> None:
    connection = ollama.hold_open()
    ollama.post("/api/generate", {"model": MODEL, "keep_alive": 0})
    assert ollama.loaded() == [MODEL]
    connection.close()
    poll(lambda: ollama.loaded() == [])


def test_a_prompt_with_keep_alive_0_unloads_after_its_answer(ollama: Running) -> None:
    assert ollama.generate(keep_alive=0)[1]["eval_count"] == 3
    assert ollama.loaded() == []


def test_an_answer_in_one_piece_has_the_figures(ollama: Running) -> None:
    status, body = ollama.generate(tokens=4)
    assert status == 200
    assert len(body["response"].split()) == 4
    assert (body["done"], body["done_reason"], body["eval_count"]) == (True, "length", 4)
    for key in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"):
        assert isinstance(body[key], int)
    assert body["total_duration"] >= body["eval_duration"] >= 4 * 1e9 / 200 * 0.9
    assert body["prompt_eval_count"] > 0


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_stream_is_one_object_a_line(ollama: Running, path: str) -> None:
    body = {
        "model": MODEL,
        "prompt": "hi",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"num_predict": 3},
    }
    connection = HTTPConnection(*ollama.address, timeout=20)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    lines = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    assert response.getheader("Content-Type") == "application/x-ndjson"
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert lines[-1]["eval_count"] == 3
    assert all(line["model"] == MODEL for line in lines)
    if path == "/api/chat":
        assert lines[0]["message"]["role"] == "assistant"
        assert lines[0]["message"]["content"]


def test_an_unknown_model_is_a_404(ollama: Running) -> None:
    status, body = ollama.post("/api/generate", {"model": "nope", "prompt": "hi"})
    assert (status, body) == (404, {"error": "model 'nope' not found"})
    status, body = ollama.post("/api/generate", {"model": "nope", "keep_alive": 0})
    assert status == 404, "unloading needs a model that exists"


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/api/generate", None, "missing request body"),
        ("/api/generate", "nonsense", "JSON"),
        ("/api/generate", {"model": MODEL, "keep_alive": "soon"}, "invalid duration"),
        ("/api/generate", {"model": MODEL, "prompt": 5}, "prompt"),
        ("/api/generate", {"model": MODEL, "options": {"num_predict": "x"}}, "num_predict"),
        ("/api/chat", {"model": MODEL, "messages": "hi"}, "messages"),
        ("/api/chat", {}, "model is required"),
    ],
)
def test_a_wrong_request_is_a_400(ollama: Running, path: str, body: Any, says: str) -> None:
    status, answer = ollama.post(path, body)
    assert status == 400
    assert says in answer["error"]


def test_unknown_paths_and_methods(ollama: Running) -> None:
    assert ollama.get("/health")[0] == 404
    assert ollama.get("/metrics")[0] == 404
    assert ollama.get("/api/generate")[0] == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11434", "8.8.8.8"])
def test_a_foreign_host_header_is_a_bare_403(ollama: Running, host: str) -> None:
    assert ollama.get("/api/ps", headers={"Host": host}) == (403, "")


@pytest.mark.parametrize("host", ["localhost:11434", "127.0.0.1:9", "[::1]:9", "box.local"])
def test_a_local_host_header_is_answered(ollama: Running, host: str) -> None:
    assert ollama.get("/api/ps", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("limits", [{"parallel": 1, "max_queue": 1}])
def test_a_request_too_many_is_told_so(ollama: Running) -> None:
    connection = ollama.hold_open()
    answers: list[tuple[int, Any]] = []
    # The queue holds one: of two, one is refused at once, and one served when its turn comes.
    callers = [
        threading.Thread(target=lambda: answers.append(ollama.generate()), daemon=True)
        for _ in range(2)
    ]
    for caller in callers:
        caller.start()
    poll(lambda: answers)
    connection.close()
    for caller in callers:
        caller.join(20)
    refused, served = answers
    text = "server busy, please try again.  maximum pending requests exceeded"
    assert refused == (503, {"error": text})
    assert served[0] == 200


@pytest.mark.parametrize("limits", [{"parallel": 1}])
def test_who_hangs_up_while_waiting_leaves_the_queue(ollama: Running) -> None:
    connection = ollama.hold_open()
    with pytest.raises(TimeoutError):
        ollama.generate(timeout=0.2)
    connection.close()
    assert ollama.generate()[0] == 200


def test_memory_and_load_are_reported(ollama: Running) -> None:
    assert ollama.report() == (0, 0.0)
    connection = ollama.hold_open()
    assert ollama.report() == (8 * GIB, 0.5)
    connection.close()
    poll(lambda: ollama.report() == (8 * GIB, 0.0))


def test_load_between_two_reports_is_not_missed(ollama: Running) -> None:
    ollama.generate()
    assert ollama.report() == (8 * GIB, 0.5)
    assert ollama.report() == (8 * GIB, 0.0)


def test_what_does_not_fit_stays_on_the_host_and_is_slow(ollama: Running) -> None:
    ollama.card.room = 4 * GIB
    ollama.generate()
    (loaded,) = ollama.get("/api/ps")[1]["models"]
    assert (loaded["size"], loaded["size_vram"]) == (8 * GIB, 4 * GIB)
    slow = ollama.generate(tokens=20)[1]["eval_duration"]
    assert slow >= 20 / 100 * 1e9 * 0.9


def test_an_idle_model_makes_room_for_another(ollama: Running) -> None:
    ollama.generate()
    ollama.card.room = 9 * GIB
    ollama.post("/api/generate", {"model": "phi3"})
    assert ollama.loaded() == ["phi3:latest"]


def test_tokens_slow_down_with_the_clocks(ollama: Running) -> None:
    ollama.card.clock_ratio = 0.5
    assert ollama.generate(tokens=20)[1]["eval_duration"] >= 20 / 100 * 1e9 * 0.9


def test_a_lost_card_fails_requests_but_not_the_server(ollama: Running) -> None:
    ollama.card.lost = True
    status, body = ollama.generate()
    assert status == 500
    assert "CUDA error" in body["error"]
    assert ollama.get("/")[0] == 200


def test_stalled_it_accepts_and_says_nothing_while_the_card_is_pegged(ollama: Running) -> None:
    ollama.generate()
    assert ollama.post("/_simulator/faults", {"fault": "stall"}) == (200, {"id": "stall"})
    with pytest.raises(TimeoutError):
        ollama.generate(timeout=0.3)
    assert ollama.get("/")[0] == ollama.get("/api/version")[0] == ollama.get("/api/ps")[0] == 200
    assert ollama.report() == (8 * GIB, 1.0)
    assert ollama.card.power_ratio == 0.1, "a hung kernel draws little"
    assert call(ollama.address, "DELETE", "/_simulator/faults")[1] == {"cleared": 1}
    assert ollama.generate()[0] == 200


def test_a_stall_may_draw_as_much_as_work(ollama: Running) -> None:
    ollama.post("/_simulator/faults", {"fault": "stall", "power_ratio": 1.0})
    assert ollama.get("/_simulator/faults")[1] == {
        "faults": [{"id": "stall", "fault": "stall", "power_ratio": 1.0}]
    }
    ollama.report()
    assert ollama.card.power_ratio == 1.0


def test_out_of_memory_while_it_runs_empties_the_card(ollama: Running) -> None:
    ollama.generate()
    ollama.post("/_simulator/faults", {"fault": "out_of_memory"})
    assert ollama.generate() == (
        500,
        {"error": "llama-server process has terminated: CUDA error: out of memory"},
    )
    assert ollama.loaded() == []
    status, body = ollama.post("/api/generate", {"model": "phi3"})
    assert (status, body["error"]) == (
        500,
        "llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory",
    )
    assert ollama.get("/")[0] == 200
    call(ollama.address, "DELETE", "/_simulator/faults")
    assert ollama.generate()[0] == 200


def test_an_unload_needs_no_memory(ollama: Running) -> None:
    ollama.generate()
    ollama.post("/_simulator/faults", {"fault": "out_of_memory"})
    body = ollama.post("/api/generate", {"model": MODEL, "keep_alive": 0})[1]
    assert body["done_reason"] == "unload"
    assert ollama.loaded() == []


@pytest.mark.parametrize("limits", [{"parallel": 1}])
def test_one_long_request_saturates_the_card_and_the_next_one_waits(ollama: Running) -> None:
    connection = ollama.hold_open()
    with pytest.raises(TimeoutError):
        ollama.generate(tokens=1, timeout=0.3)
    assert ollama.report() == (8 * GIB, 1.0)
    assert ollama.card.power_ratio == 1.0, "work draws power, unlike a hang"
    connection.close()
    assert ollama.generate(tokens=1)[0] == 200


def test_of_several_models_the_idle_one_is_unloaded_at_once(ollama: Running) -> None:
    ollama.post("/api/generate", {"model": "phi3", "keep_alive": -1})
    connection = ollama.hold_open()
    assert sorted(ollama.loaded()) == [MODEL, "phi3:latest"]
    assert ollama.report()[0] == 10 * GIB
    for model in (MODEL, "phi3"):
        ollama.post("/api/generate", {"model": model, "keep_alive": 0})
    assert ollama.loaded() == [MODEL], "the busy one stays until its request ends"
    assert ollama.report()[0] == 8 * GIB
    connection.close()
    poll(lambda: ollama.loaded() == [])


def test_what_is_loading_counts_as_taken(ollama: Running) -> None:
    ollama.card.room = 9 * GIB
    connection = ollama.hold_open()
    ollama.post("/api/generate", {"model": "phi3"})
    sizes = {one["name"]: one["size_vram"] for one in ollama.get("/api/ps")[1]["models"]}
    connection.close()
    assert sizes == {MODEL: 8 * GIB, "phi3:latest": GIB}


@pytest.mark.parametrize(
    "body",
    [
        {"fault": "stal"},
        {"fault": "stall", "for": 5},
        {"fault": "stall", "power_ratio": 2},
        {"fault": "out_of_memory", "for": 5},
        {"fault": "crash", "exit_code": -1},
        {"fault": "crash", "exit_code": 1, "signal": 9},
        {"fault": "crash", "signal": "SIGNAL"},
        {"fault": "crash", "signal": 0},
    ],
)
def test_a_wrong_fault_is_refused(ollama: Running, body: Any) -> None:
    status, answer = ollama.post("/_simulator/faults", body)
    assert status == 400
    assert answer["error"]
    assert ollama.get("/_simulator/faults") == (200, {"faults": []})


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (None, None),
        (0, 0),
        (90, 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        (-1, FOREVER_SECONDS),
        ("-1s", FOREVER_SECONDS),
    ],
)
def test_keep_alive_is_read_as_go_reads_it(written: Any, seconds: float | None) -> None:
    assert keep_alive_seconds(written) == seconds


@pytest.mark.parametrize("written", ["5", "m", "5 m", "", True, [], "5m!"])
def test_keep_alive_that_go_refuses_is_refused(written: Any) -> None:
    with pytest.raises(BadRequestError):
        keep_alive_seconds(written)


@pytest.mark.parametrize("written", ["llama", "llama=8", "=8GiB", "llama=big"])
def test_a_wrong_model_flag_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="NAME=SIZE"):
        parse_models([written])


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5m", 300), ("300", 300), ("0", 0), ("-1", FOREVER_SECONDS), ("-1s", FOREVER_SECONDS)],
)
def test_the_servers_own_keep_alive_may_lack_a_unit(written: str, seconds: float) -> None:
    assert keep_alive_setting(written) == seconds


def test_a_wrong_keep_alive_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="--keep-alive"):
        keep_alive_setting("soon")
