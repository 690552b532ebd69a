"""The `llamacpp` driver on a router of several models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from remediator.errors import ServiceError, ServiceTimeout
from tests.remediator.engine.llamacpp_dialect import (
    CANARY,
    COMPLETION,
    IDLE,
    NO_METRICS,
    NOT_LOADED,
    PAGE,
    Answers,
    Router,
    driver,
    llama_server,
    of_model,
)
from tests.remediator.engine.vllm_server import HANGS, FakeVllm, fake_vllm


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with llama_server() as server:
        yield server


@pytest.fixture
def router(fake: FakeVllm) -> Router:
    return Router(fake)


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
    one.load("a", 20)
    one.load("a", 20)
    assert fake.paths.count("/models/load") == 1
    assert [model.name for model in one.probe().models] == ["a"]
    one.unload("a", 20)
    one.unload("a", 20)
    assert fake.paths.count("/models/unload") == 1
    assert one.probe().models == ()
    assert CANARY not in fake.paths


def test_what_a_router_cannot_load_is_said(fake: FakeVllm, router: Router) -> None:
    router.states["a"] = {"value": "unloaded", "exit_code": 1, "failed": True}
    one = driver(fake.url)
    one.load("a", 20)
    router.broken.add("b")
    with pytest.raises(ServiceError, match=r"b could not be loaded: .*exit code 1"):
        one.load("b", 20)
    with pytest.raises(ServiceError, match="no model c; it has: a, b, my model"):
        one.load("c", 20)
    with pytest.raises(ServiceError, match="no model c; it has"):
        one.unload("c", 20)
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
    one.unload("a", 20)
    assert router.states["a"] == {"value": "unloaded"}


def test_whether_a_model_is_in_use_is_never_guessed(fake: FakeVllm, router: Router) -> None:
    one = driver(fake.url, metrics=False)
    router.has(a="loaded")
    fake.answers[of_model("/metrics", "a")] = (501, {"error": NO_METRICS})
    with pytest.raises(ServiceError, match=r"in use cannot be seen; .*--metrics"):
        one.unload("a", 20)
    assert "/models/unload" not in fake.paths
    fake.answers[of_model("/slots", "a")] = (200, [{"is_processing": False}])
    one.unload("a", 20)
    assert "/models/unload" in fake.paths


def test_a_model_that_sleeps_is_unloaded_without_waking_it(fake: FakeVllm, router: Router) -> None:
    router.has(b="sleeping")
    driver(fake.url).unload("b", 20)
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
    driver(fake.url).load("b", 20)
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
