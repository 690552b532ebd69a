"""The llama.cpp driver: against answers recorded from a real server, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ConfigError, ServiceError, ServiceRefused, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.processes import free_port
from tests.remediator.engine.vllm_server import HANGS, FakeVllm, fake_vllm
from tests.waiting import poll

# Lines as llama-server 0.1.0-dev (7e4c0a9) gives them, shortened.
PAGE = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 10
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 401
# HELP llamacpp:n_decode_total Total number of llama_decode() calls
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total 782
# TYPE llamacpp:predicted_tokens_seconds gauge
llamacpp:predicted_tokens_seconds 2555.56
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 2
# TYPE llamacpp:n_busy_slots_per_decode gauge
llamacpp:n_busy_slots_per_decode 1
"""
IDLE = PAGE.replace("processing 1", "processing 0").replace("deferred 2", "deferred 0")
LOADING = {"message": "Loading model", "type": "unavailable_error", "code": 503}
NO_METRICS = {"code": 501, "message": "This server does not support metrics endpoint."}
NOT_LOADED = {"code": 400, "message": "model is not loaded", "type": "invalid_request_error"}
CUT_OFF = {
    "code": 500,
    "message": "The model produced output that does not match the expected Content-only format",
    "type": "server_error",
}
MODELS = {"object": "list", "data": [{"id": "qwen", "aliases": ["qwen"], "object": "model"}]}
COMPLETION = {"choices": [{"text": "!", "index": 0}], "object": "text_completion"}
CANARY = "/v1/completions?autoload=false"


class Answers(dict[str, Any]):
    """Of which some are made when they are asked for."""

    def get(self, path: str, default: Any = None) -> Any:
        answer = super().get(path, default)
        return answer() if callable(answer) else answer


def of_model(path: str, name: str) -> str:
    return f"{path}?model={name}&autoload=false"


def driver(url: str, *, timeout: float = 3.0, **options: object) -> ServiceDriver:
    config = ServiceConfig("llama", "llamacpp", url, {}, options=options)
    return services.create(config, Timing(probe_timeout=timeout))


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        server.answers = Answers(
            {
                "/health": (200, {"status": "ok"}),
                "/props": (200, {"model_alias": "qwen", "is_sleeping": False}),
                "/metrics": (200, PAGE),
                "/slots": (200, [{"id": 0, "is_processing": True}, {"is_processing": False}]),
                "/v1/models": (200, MODELS),
                CANARY: (200, COMPLETION),
            }
        )
        yield server


class Router:
    """A router's models; what is ordered happens, after `looks` more looks."""

    def __init__(self, fake: FakeVllm) -> None:
        self.states: dict[str, dict[str, Any]] = {
            name: {"value": "unloaded"} for name in ("a", "b", "my model")
        }
        self.looks = 1
        self.broken: set[str] = set()
        self._fake = fake
        self._ordered: list[tuple[int, str, dict[str, Any]]] = []
        fake.answers["/props"] = (200, {"role": "router", "models_autoload": True})
        fake.answers["/models"] = self._list
        fake.answers["/models/load"] = lambda: self._order("loading", "loaded")
        fake.answers["/models/unload"] = lambda: self._order("loaded", "unloaded")
        for name in self.states:
            self.page(name, IDLE)
        fake.answers["/metrics"] = (400, {"error": {"message": "model name is missing"}})
        fake.answers.pop("/slots", None)

    def page(self, name: str, page: str) -> None:
        encoded = name.replace(" ", "+")
        self._fake.answers[of_model("/metrics", encoded)] = (200, page)

    def has(self, **states: str) -> None:
        for name, value in states.items():
            self.states[name] = {"value": value}

    def _list(self) -> tuple[int, object]:
        self._ordered = [(left - 1, name, state) for left, name, state in self._ordered]
        for left, name, state in self._ordered:
            if left < 0:
                self.states[name] = state
        self._ordered = [one for one in self._ordered if one[0] >= 0]
        data = [{"id": name, "status": state} for name, state in self.states.items()]
        return 200, {"object": "list", "data": data}

    def _order(self, now: str, then: str) -> tuple[int, object]:
        name = json.loads(self._fake.asked[-1][2])["model"]
        self.states[name] = {"value": now}
        last: dict[str, Any] = {"value": then}
        if name in self.broken and then == "loaded":
            last = {"value": "unloaded", "exit_code": 1, "failed": True}
        self._ordered.append((self.looks, name, last))
        return 200, {"success": True}


@pytest.fixture
def router(fake: FakeVllm) -> Router:
    return Router(fake)


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
    probe = driver(fake.url, timeout=0.3).probe()
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
    one.canary("qwen", 2)
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
        driver(fake.url).canary("qwen", 2)
    (tmp_path / "key").write_text("wrong-key")
    said = driver(fake.url, api_key_file=str(tmp_path / "key")).probe().detail
    assert "is not its API key" in said
    assert "wrong-key" not in said
    with pytest.raises(ConfigError, match="cannot read the token file"):
        driver(fake.url, api_key_file=str(tmp_path / "none"))


def test_a_canary_is_one_token_and_loads_nothing(fake: FakeVllm) -> None:
    assert 0 <= driver(fake.url).canary("qwen", 5) < 5
    path, _, body = fake.asked[-1]
    assert path == CANARY
    assert json.loads(body) == {"model": "qwen", "prompt": "ping", "max_tokens": 1}


def test_a_server_of_embeddings_is_asked_for_one(fake: FakeVllm) -> None:
    fake.answers["/v1/embeddings?autoload=false"] = (200, {"data": [{"embedding": [0.1]}]})
    one = driver(fake.url, canary="embedding")
    assert one.canary("qwen", 5) >= 0
    assert json.loads(fake.asked[-1][2]) == {"model": "qwen", "input": "ping"}
    fake.answers["/v1/embeddings?autoload=false"] = (200, {"data": []})
    with pytest.raises(ServiceError, match=r"not answered as llama.cpp does"):
        one.canary("qwen", 2)


def test_a_token_that_is_half_a_character_is_an_answer(fake: FakeVllm) -> None:
    fake.answers[CANARY] = (500, {"error": CUT_OFF})
    assert driver(fake.url).canary("qwen", 5) >= 0


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
        driver(fake.url).canary("qwen", 2)
    assert not isinstance(caught.value, ServiceTimeout)


def test_never_two_canaries_at_once(fake: FakeVllm) -> None:
    fake.answers[CANARY] = HANGS
    one = driver(fake.url)

    def quietly() -> None:
        with contextlib.suppress(ServiceError):
            one.canary("qwen", 10)

    first = threading.Thread(target=quietly)
    first.start()
    poll(lambda: CANARY in fake.paths)
    with pytest.raises(ServiceTimeout, match="another canary"):
        one.canary("qwen", 0.2)
    assert fake.paths.count(CANARY) == 1
    fake.ends.set()
    first.join(10)


def test_loaded_is_what_it_serves(fake: FakeVllm) -> None:
    one = driver(fake.url)
    one.load("qwen", 2)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 2)
    assert CANARY not in fake.paths
    fake.answers["/health"] = (503, {"error": LOADING})
    with pytest.raises(ServiceTimeout, match="not ready to serve qwen: it loads its model"):
        one.load("qwen", 0.2)


def test_what_sleeps_is_woken_to_be_loaded(fake: FakeVllm) -> None:
    def sleeps() -> tuple[int, object]:
        return 200, {"is_sleeping": CANARY not in fake.paths}

    fake.answers["/props"] = sleeps
    driver(fake.url).load("qwen", 5)
    assert fake.paths.count(CANARY) == 1


def test_a_server_with_one_model_says_that_it_cannot_unload(fake: FakeVllm) -> None:
    one = driver(fake.url)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="no router cannot unload qwen"):
        one.unload("qwen", 1)
    assert "/models/unload" not in fake.paths


def test_a_router_sums_over_what_is_loaded_and_asks_nothing_else(
    fake: FakeVllm, router: Router
) -> None:
    one = driver(fake.url)
    probe = one.probe()
    assert (probe.state, probe.models, probe.progress) == ("ready", (), None)
    assert one.can_unload is True
    router.has(a="loaded", b="sleeping")
    router.states["my model"] = {"value": "loaded"}
    router.page("a", PAGE)
    probe = one.probe()
    assert [model.name for model in probe.models] == ["a", "my model"]
    assert (probe.requests_running, probe.requests_waiting, probe.progress) == (1, 2, 2 * 782)
    assert "2 model(s) loaded, 1 sleeping" in probe.detail
    asked = {path for path in fake.paths if path.startswith(("/metrics", "/slots"))}
    assert asked == {of_model("/metrics", "a"), of_model("/metrics", "my+model")}


def test_a_sum_that_one_model_is_missing_from_is_not_known(fake: FakeVllm, router: Router) -> None:
    router.has(a="loaded", b="loaded")
    fake.answers[of_model("/metrics", "b")] = (400, {"error": NOT_LOADED})
    probe = driver(fake.url).probe()
    assert (probe.state, probe.progress, probe.requests_in_flight) == ("ready", None, None)
    fake.answers[of_model("/metrics", "b")] = HANGS
    probe = driver(fake.url, timeout=0.3).probe()
    assert (probe.state, probe.progress) == ("silent", None)


def test_a_router_loads_and_unloads(fake: FakeVllm, router: Router) -> None:
    one = driver(fake.url)
    one.load("a", 5)
    one.load("a", 5)
    assert fake.paths.count("/models/load") == 1
    assert [model.name for model in one.probe().models] == ["a"]
    one.unload("a", 5)
    one.unload("a", 5)
    assert fake.paths.count("/models/unload") == 1
    assert one.probe().models == ()
    assert CANARY not in fake.paths


def test_what_a_router_cannot_load_is_said(fake: FakeVllm, router: Router) -> None:
    router.states["a"] = {"value": "unloaded", "exit_code": 1, "failed": True}
    one = driver(fake.url)
    one.load("a", 5)
    router.broken.add("b")
    with pytest.raises(ServiceError, match=r"b could not be loaded: .*exit code 1"):
        one.load("b", 5)
    with pytest.raises(ServiceError, match="no model c; it has: a, b, my model"):
        one.load("c", 5)
    with pytest.raises(ServiceError, match="no model c; it has"):
        one.unload("c", 5)
    router.has(b="downloading")
    with pytest.raises(ServiceTimeout, match="b is not loaded in time"):
        one.load("b", 0.3)


def test_a_model_in_use_is_not_unloaded(fake: FakeVllm, router: Router) -> None:
    one = driver(fake.url)
    router.has(a="loaded")
    router.page("a", PAGE)
    with pytest.raises(ServiceTimeout, match="a is still loaded; it is in use"):
        one.unload("a", 1.0)
    router.page("a", IDLE.replace("deferred 0", "deferred 1"))
    with pytest.raises(ServiceTimeout, match="in use"):
        one.unload("a", 1.0)
    assert "/models/unload" not in fake.paths
    router.page("a", IDLE)
    one.unload("a", 5)
    assert router.states["a"] == {"value": "unloaded"}


def test_whether_a_model_is_in_use_is_never_guessed(fake: FakeVllm, router: Router) -> None:
    one = driver(fake.url, metrics=False)
    router.has(a="loaded")
    fake.answers[of_model("/metrics", "a")] = (501, {"error": NO_METRICS})
    with pytest.raises(ServiceError, match=r"in use cannot be seen; .*--metrics"):
        one.unload("a", 5)
    assert "/models/unload" not in fake.paths
    fake.answers[of_model("/slots", "a")] = (200, [{"is_processing": False}])
    one.unload("a", 5)
    assert "/models/unload" in fake.paths


def test_a_model_that_sleeps_is_unloaded_without_waking_it(fake: FakeVllm, router: Router) -> None:
    router.has(b="sleeping")
    driver(fake.url).unload("b", 5)
    assert of_model("/metrics", "b") not in fake.paths
    assert router.states["b"] == {"value": "unloaded"}


def test_an_unload_that_does_not_happen_is_an_error(fake: FakeVllm, router: Router) -> None:
    router.has(a="loaded", b="loaded")
    router.looks = 1000
    with pytest.raises(ServiceTimeout, match="still loaded; most likely it is in use"):
        driver(fake.url).unload("a", 0.3)
    fake.answers["/models/unload"] = (400, {"error": {"message": "model is not running"}})
    with pytest.raises(ServiceError, match=r"the unload failed.*not running"):
        driver(fake.url).unload("b", 1)


def test_a_router_that_is_started_anew_as_another_server_is_known_again(
    fake: FakeVllm, router: Router
) -> None:
    one = driver(fake.url)
    assert one.can_unload is False, "nobody has looked yet"
    one.probe()
    assert one.can_unload is True
    fake.answers["/props"] = (200, {"is_sleeping": False})
    fake.answers["/metrics"] = (200, IDLE)
    assert one.probe().state == "ready"
    assert one.can_unload is False


def test_a_model_of_a_router_that_sleeps_is_woken_to_be_loaded(
    fake: FakeVllm, router: Router
) -> None:
    def wakes() -> tuple[int, object]:
        router.has(b="loaded")
        return 200, COMPLETION

    router.has(b="sleeping")
    fake.answers[CANARY] = wakes
    driver(fake.url).load("b", 5)
    assert "/models/load" not in fake.paths


def test_of_a_router_that_is_gone_it_is_not_known_what_it_will_be() -> None:
    with fake_vllm() as server:
        server.answers = Answers({"/health": (200, {"status": "ok"})})
        Router(server)
        one = driver(server.url)
        one.probe()
    assert one.can_unload is True, "nobody looked since"
    assert one.probe().state == "refused"
    assert one.can_unload is False
