"""The llama.cpp driver: against answers recorded from a real server, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator.errors import ConfigError, ServiceError, ServiceRefused, ServiceTimeout
from tests.remediator.engine.llamacpp_dialect import (
    CANARY,
    CUT_OFF,
    LOADING,
    NO_METRICS,
    NOT_LOADED,
    PAGE,
    driver,
    llama_server,
)
from tests.remediator.engine.processes import free_port
from tests.remediator.engine.vllm_server import HANGS, FakeVllm
from tests.waiting import poll


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with llama_server() as server:
        yield server


def test_demand_progress_and_model_of_a_server_with_one(fake: FakeVllm) -> None:
    probe = driver(fake.url).probe()
    assert probe.state == "ready"
    assert [(model.name, model.memory_bytes) for model in probe.models] == [("qwen", None)]
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (1, 2, 782)


@pytest.mark.parametrize(
    "metrics",
    [
        (501, {"error": NO_METRICS}),
        (404, {"error": {"message": "File Not Found"}}),
        (200, ""),
        (200, "<html>a proxy</html>"),
    ],
)
def test_without_metrics_the_slots_say_what_runs_and_nothing_is_progress(
    fake: FakeVllm, metrics: object
) -> None:
    fake.answers["/metrics"] = metrics
    probe = driver(fake.url).probe()
    assert (probe.state, probe.requests_running, probe.progress) == ("ready", 1, None)
    assert probe.requests_waiting is None
    fake.answers["/slots"] = (200, [{"id": 0, "is_processing": False}])
    assert driver(fake.url).probe().requests_in_flight is None, "some may wait"


@pytest.mark.parametrize(
    "slots", [(501, {"error": NO_METRICS}), (200, {}), (200, [{"id": 0}]), (200, [3]), (200, "no")]
)
def test_what_neither_metrics_nor_slots_say_is_not_known(fake: FakeVllm, slots: object) -> None:
    fake.answers["/metrics"] = (501, {"error": NO_METRICS})
    fake.answers["/slots"] = slots
    probe = driver(fake.url).probe()
    assert probe.state == "ready"
    assert [model.name for model in probe.models] == ["qwen"]
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (None, None, None)


@pytest.mark.parametrize("value", ["nan", "-1", "+Inf"])
def test_a_number_that_counts_nothing_is_no_reading(fake: FakeVllm, value: str) -> None:
    fake.answers["/metrics"] = (200, PAGE.replace("n_decode_total 782", f"n_decode_total {value}"))
    probe = driver(fake.url).probe()
    assert (probe.progress, probe.requests_running) == (None, 1)


def test_a_page_that_cannot_be_read_is_no_reading(fake: FakeVllm) -> None:
    fake.answers["/metrics"] = (200, PAGE.replace("processing 1", "processing one"))
    probe = driver(fake.url).probe()
    assert (probe.state, probe.requests_running, probe.progress) == ("ready", None, None)


def test_while_it_loads_its_model_it_is_coming_up(fake: FakeVllm) -> None:
    fake.answers["/health"] = (503, {"error": LOADING})
    assert driver(fake.url).probe().state == "loading"
    fake.answers["/health"] = (503, "<html>Service Unavailable</html>")
    assert driver(fake.url).probe().state == "error", "a proxy turns away"


@pytest.mark.parametrize("path", ["/health", "/props", "/v1/models", "/metrics"])
def test_a_server_that_listens_and_does_not_answer_is_silent(fake: FakeVllm, path: str) -> None:
    fake.answers[path] = HANGS
    probe = driver(fake.url, timeout=0.3).probe()
    assert (probe.state, probe.progress) == ("silent", None)


def test_an_engine_that_does_not_answer_leaves_the_model_known(fake: FakeVllm) -> None:
    fake.answers["/metrics"] = HANGS
    probe = driver(fake.url, timeout=1).probe()
    assert [model.name for model in probe.models] == ["qwen"]
    assert "it answers, but its engine does not" in probe.detail


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/health", (302, "")),
        ("/props", (500, "")),
        ("/props", (200, "[]")),
        ("/v1/models", (200, "not JSON")),
        ("/v1/models", (200, {"data": 3})),
        ("/v1/models", (200, {"data": [{"id": 7}]})),
        ("/v1/models", (200, {"data": ["qwen"]})),
    ],
)
def test_a_probe_never_raises_and_says_what_it_saw(
    fake: FakeVllm, path: str, answer: object
) -> None:
    fake.answers[path] = answer
    probe = driver(fake.url).probe()
    assert probe.state == "error"
    assert path in probe.detail or "JSON" in probe.detail


def test_nothing_that_listens_is_refused() -> None:
    one = driver(f"http://127.0.0.1:{free_port()}")
    assert one.probe().state == "refused"
    assert one.can_unload is False
    with pytest.raises(ServiceRefused):
        one.canary("qwen", 1)


def test_a_server_that_sleeps_is_not_woken_by_a_probe(fake: FakeVllm) -> None:
    fake.answers["/props"] = (200, {"is_sleeping": True})
    probe = driver(fake.url).probe()
    assert (probe.state, probe.models) == ("sleeping", ())
    assert not {"/metrics", "/slots"} & set(fake.paths)


def test_where_metrics_are_not_to_be_read_they_are_not(fake: FakeVllm) -> None:
    probe = driver(fake.url, metrics=False).probe()
    assert (probe.state, probe.requests_running, probe.progress) == ("ready", None, None)
    assert [model.name for model in probe.models] == ["qwen"]
    assert not {"/metrics", "/slots"} & set(fake.paths)


def test_the_key_goes_to_all_but_health(fake: FakeVllm, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short\n")
    one = driver(fake.url, api_key_file=str(tmp_path / "key"))
    assert one.probe().state == "ready"
    one.canary("qwen", 20)
    keys = {path: key for path, key, _ in fake.asked}
    assert keys.pop("/health") is None
    assert set(keys.values()) == {"Bearer short"}
    assert set(keys) == {"/props", "/v1/models", "/metrics", CANARY}


def test_a_key_that_is_missing_or_wrong_is_said(fake: FakeVllm, tmp_path: Path) -> None:
    invalid = (401, {"error": {"message": "Invalid API Key", "code": 401}})
    fake.answers["/props"] = fake.answers[CANARY] = invalid
    probe = driver(fake.url).probe()
    assert probe.state == "error"
    assert "name its file in options.api_key_file" in probe.detail
    with pytest.raises(ServiceError, match=r"HTTP 401.*Invalid API Key.*options.api_key_file"):
        driver(fake.url).canary("qwen", 20)
    (tmp_path / "key").write_text("wrong-key")
    said = driver(fake.url, api_key_file=str(tmp_path / "key")).probe().detail
    assert "is not its API key" in said
    assert "wrong-key" not in said
    with pytest.raises(ConfigError, match="cannot read the token file"):
        driver(fake.url, api_key_file=str(tmp_path / "none"))


def test_a_canary_is_one_token_and_loads_nothing(fake: FakeVllm) -> None:
    assert 0 <= driver(fake.url).canary("qwen", 20) < 20
    path, _, body = fake.asked[-1]
    assert path == CANARY
    assert json.loads(body) == {"model": "qwen", "prompt": "ping", "max_tokens": 1}


def test_a_server_of_embeddings_is_asked_for_one(fake: FakeVllm) -> None:
    fake.answers["/v1/embeddings?autoload=false"] = (200, {"data": [{"embedding": [0.1]}]})
    one = driver(fake.url, canary="embedding")
    assert one.canary("qwen", 20) >= 0
    assert json.loads(fake.asked[-1][2]) == {"model": "qwen", "input": "ping"}
    fake.answers["/v1/embeddings?autoload=false"] = (200, {"data": []})
    with pytest.raises(ServiceError, match=r"not answered as llama.cpp does"):
        one.canary("qwen", 20)


def test_a_token_that_is_half_a_character_is_an_answer(fake: FakeVllm) -> None:
    fake.answers[CANARY] = (500, {"error": CUT_OFF})
    assert driver(fake.url).canary("qwen", 20) >= 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, {"error": {"message": "Compute error."}}), r"HTTP 500.*Compute error"),
        ((400, {"error": NOT_LOADED}), "model is not loaded"),
        ((503, {"error": LOADING}), "Loading model"),
        ((200, {"choices": []}), r"not answered as llama.cpp does"),
        ((200, "[]"), r"not answered as llama.cpp does"),
        ((200, "not JSON"), "not JSON"),
    ],
)
def test_a_canary_without_an_answer_has_failed(fake: FakeVllm, answer: object, words: str) -> None:
    fake.answers[CANARY] = answer
    with pytest.raises(ServiceError, match=words) as caught:
        driver(fake.url).canary("qwen", 20)
    assert not isinstance(caught.value, ServiceTimeout)


def test_never_two_canaries_at_once(fake: FakeVllm) -> None:
    fake.answers[CANARY] = HANGS
    one = driver(fake.url)

    def quietly() -> None:
        with contextlib.suppress(ServiceError):
            one.canary("qwen", 60)

    first = threading.Thread(target=quietly)
    first.start()
    poll(lambda: CANARY in fake.paths)
    with pytest.raises(ServiceTimeout, match="another canary"):
        one.canary("qwen", 0.2)
    assert fake.paths.count(CANARY) == 1
    fake.ends.set()
    first.join(60)


def test_loaded_is_what_it_serves(fake: FakeVllm) -> None:
    one = driver(fake.url)
    one.load("qwen", 20)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 20)
    assert CANARY not in fake.paths
    fake.answers["/health"] = (503, {"error": LOADING})
    with pytest.raises(ServiceTimeout, match="not ready to serve qwen: it loads its model"):
        one.load("qwen", 0.2)


def test_what_sleeps_is_woken_to_be_loaded(fake: FakeVllm) -> None:
    def sleeps() -> tuple[int, object]:
        return 200, {"is_sleeping": CANARY not in fake.paths}

    fake.answers["/props"] = sleeps
    driver(fake.url).load("qwen", 20)
    assert fake.paths.count(CANARY) == 1


def test_a_server_with_one_model_says_that_it_cannot_unload(fake: FakeVllm) -> None:
    one = driver(fake.url)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="no router cannot unload qwen"):
        one.unload("qwen", 1)
    assert "/models/unload" not in fake.paths
