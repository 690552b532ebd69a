"""The Ray Serve driver against recorded answers: whose metrics count, what Ray mends by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator import services
from remediator.config import ServiceConfig, Timing
from remediator.errors import ConfigError, ServiceError, ServiceTimeout
from remediator.services import ServiceDriver
from tests.remediator.engine.dialects import served
from tests.remediator.engine.processes import free_port
from tests.remediator.engine.ray_dialect import RayServe


@pytest.fixture
def ray() -> Iterator[RayServe]:
    one = RayServe()
    with served(one):
        yield one


def driver(
    ray: RayServe, *, timeout: float = 20.0, url: str = "", **options: object
) -> ServiceDriver:
    """One that was told all addresses, for the application llm."""
    told = {
        "application": "llm",
        "proxy_url": f"{ray.url}/llm",
        "metrics_url": f"{ray.url}/metrics",
    }
    config = ServiceConfig("llm", "ray_serve", url or ray.url, {}, options={**told, **options})
    return services.create(config, Timing(probe_timeout=timeout))


def test_demand_and_progress_are_those_of_its_application(ray: RayServe) -> None:
    ray.running, ray.waiting = 2, 3
    probe = driver(ray).probe()
    assert (probe.state, probe.requests_running, probe.requests_waiting) == ("ready", 2, 3)
    assert [model.name for model in probe.models] == ["qwen"]
    assert probe.progress == 100, "the counters of replicas that died stay on the page"


def test_all_applications_are_one_service_where_none_is_named(ray: RayServe) -> None:
    probe = driver(ray, application="").probe()
    assert (probe.state, probe.requests_running, probe.requests_waiting) == ("ready", 9, 9)


def test_without_vllm_in_it_progress_is_not_known(ray: RayServe) -> None:
    ray.vllm = False
    probe = driver(ray).probe()
    assert (probe.requests_running, probe.progress) == (0, None)


def test_without_its_addresses_only_the_state_is_known(ray: RayServe) -> None:
    one = driver(ray, proxy_url="", metrics_url="")
    probe = one.probe()
    assert (probe.state, probe.models) == ("ready", ())
    assert (probe.requests_in_flight, probe.progress) == (None, None)
    assert {request.path for request in ray.asked} == {"/api/serve/applications/"}
    with pytest.raises(ServiceError, match=r"options\.proxy_url"):
        one.canary("qwen", 1)
    with pytest.raises(ServiceError, match=r"options\.proxy_url"):
        one.load("qwen", 1)


@pytest.mark.parametrize(
    ("status", "replicas", "state"),
    [
        ("RUNNING", ["RUNNING"], "ready"),
        ("NOT_STARTED", [], "loading"),
        ("DEPLOYING", ["STARTING"], "loading"),
        # As recorded when a replica was killed: Ray replaces it.
        ("UNHEALTHY", ["STARTING"], "loading"),
        ("UNHEALTHY", ["STOPPED", "RECOVERING"], "loading"),
        ("UNHEALTHY", [], "dead"),
        ("UNHEALTHY", ["STOPPING"], "dead"),
        ("UNHEALTHY", ["RUNNING", "STARTING"], "error"),
        ("DEPLOY_FAILED", [], "dead"),
        ("DEPLOY_FAILED", ["RUNNING"], "error"),
        ("DELETING", ["STOPPING"], "error"),
        ("A_NEW_ONE", ["RUNNING"], "error"),
    ],
)
def test_what_ray_says_of_an_application(
    ray: RayServe, status: str, replicas: list[str], state: str
) -> None:
    ray.statuses["llm"], ray.replicas["llm"] = status, replicas
    ray.messages["llm"] = "A replica's health check failed."
    probe = driver(ray).probe()
    assert probe.state == state
    if state != "ready":
        assert f"llm is {status}: A replica's health check failed." in probe.detail


def test_a_traceback_is_one_short_line(ray: RayServe) -> None:
    ray.statuses["llm"], ray.replicas["llm"] = "DEPLOY_FAILED", []
    ray.messages["llm"] = "Traceback:\n  File x\n" + "CUDA out of memory\n" * 100
    said = driver(ray).probe().detail
    assert "DEPLOY_FAILED: Traceback: File x CUDA out of memory" in said
    assert "\n" not in said
    assert len(said) < 400


def test_one_of_several_that_has_died_is_an_error_and_all_of_them_dead(ray: RayServe) -> None:
    ray.statuses["two"], ray.replicas["two"] = "DEPLOY_FAILED", []
    assert driver(ray, application="").probe().state == "error"
    assert driver(ray).probe().state == "ready", "it is the affair of another service"
    ray.statuses["llm"], ray.replicas["llm"] = "DEPLOY_FAILED", []
    assert driver(ray, application="").probe().state == "dead"


def test_serve_that_does_not_run_or_lacks_the_application_is_dead(ray: RayServe) -> None:
    del ray.statuses["llm"]
    probe = driver(ray).probe()
    assert (probe.state, "no application llm" in probe.detail) == ("dead", True)
    ray.statuses.clear()
    ray.proxies.clear()
    assert driver(ray, application="").probe().state == "dead"


def test_one_that_is_scaled_to_zero_sleeps_and_is_not_woken(ray: RayServe) -> None:
    ray.wanted["llm"], ray.replicas["llm"] = 0, []
    assert driver(ray).probe().state == "sleeping"
    assert {request.path for request in ray.asked} == {"/api/serve/applications/"}


@pytest.mark.parametrize(
    ("proxies", "state"),
    [(["UNHEALTHY"], "error"), (["STARTING"], "loading"), (["UNHEALTHY", "HEALTHY"], "ready")],
)
def test_without_a_healthy_proxy_nobody_is_answered(
    ray: RayServe, proxies: list[str], state: str
) -> None:
    ray.proxies = proxies
    assert driver(ray).probe().state == state


def test_a_dashboard_that_is_down_is_not_a_service_that_is_down(ray: RayServe) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    probe = driver(ray, url=nobody).probe()
    assert (probe.state, probe.is_up) == ("error", False)
    assert "proxy works" in probe.detail
    assert driver(ray, url=nobody, proxy_url="").probe().state == "refused"
    assert driver(ray, url=nobody, proxy_url=f"{nobody}/llm").probe().state == "refused"


DEPLOYMENT = {"name": "one", "target_num_replicas": math.inf, "replicas": []}
BOUNDLESS = {"name": "llm", "status": "RUNNING", "deployments": {"one": DEPLOYMENT}}


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((503, "GCS"), "error"),
        ((404, ""), "error"),
        ((200, "no JSON"), "error"),
        ((200, "[]"), "error"),
        ((200, {"applications": {"llm": 3}, "proxies": {}}), "error"),
        ((200, {"applications": {"llm": BOUNDLESS}, "proxies": {}}), "error"),
        ((200, {"applications": {}, "proxies": {}}), "dead"),
    ],
)
def test_a_probe_never_raises(ray: RayServe, answer: tuple[int, object], state: str) -> None:
    ray.forced["/api/serve/applications/"] = answer
    probe = driver(ray).probe()
    assert (probe.state, bool(probe.detail)) == (state, True)


def test_what_does_not_answer_is_silent(ray: RayServe) -> None:
    ray.running = 4
    ray.hangs.add("/llm/v1/models")
    probe = driver(ray, timeout=1).probe()
    assert (probe.state, probe.requests_running, probe.progress) == ("silent", 4, 100)
    ray.hangs.add("/api/serve/applications/")
    assert driver(ray, timeout=0.3).probe().state == "silent"


def test_metrics_that_cannot_be_had_are_not_zero(ray: RayServe) -> None:
    for answer in ((500, ""), (200, ""), (200, "<html>")):
        ray.forced["/metrics"] = answer
        probe = driver(ray).probe()
        assert (probe.state, probe.requests_in_flight, probe.progress) == ("ready", None, None)


def test_rays_token_goes_to_the_dashboard_and_the_key_to_the_proxy(
    ray: RayServe, tmp_path: Path
) -> None:
    ray.token, ray.key = "rays-own", "users"
    assert "options.token_file" in driver(ray).probe().detail
    (tmp_path / "token").write_text("rays-own\n")
    (tmp_path / "key").write_text("users\n")
    files = {name: str(tmp_path / name.split("_")[-2]) for name in ("token_file", "api_key_file")}
    ray.asked.clear()
    one = driver(ray, **files)
    assert one.probe().state == "ready"
    one.canary("qwen", 20)
    shown = {request.path: request.bearer for request in ray.asked}
    assert shown == {
        "/api/serve/applications/": "rays-own",
        "/metrics": None,
        "/llm/v1/models": "users",
        "/llm/v1/completions": "users",
    }


def test_a_canary_goes_through_the_proxy(ray: RayServe) -> None:
    one = driver(ray)
    assert 0 <= one.canary("qwen", 20) < 20
    with pytest.raises(ServiceError, match="does not exist"):
        one.canary("nobody", 20)


def test_loaded_is_what_it_serves_and_nothing_is_unloaded(ray: RayServe) -> None:
    one = driver(ray)
    one.load("qwen", 20)
    with pytest.raises(ServiceError, match="serves qwen, not llama"):
        one.load("llama", 20)
    assert one.can_unload is False
    with pytest.raises(ServiceError, match="cannot unload qwen"):
        one.unload("qwen", 1)
    ray.statuses["llm"] = "DEPLOYING"
    with pytest.raises(ServiceTimeout, match="llm is DEPLOYING"):
        one.load("qwen", 0.2)
    assert ray.writes == [], "nothing at the dashboard is ever changed"


@pytest.mark.parametrize(
    ("shares", "wanted", "asked"),
    [
        ({"ray_actor_options": {"num_gpus": 0.5}}, 1, 1.25),
        ({"ray_actor_options": {"num_gpus": 0.5}}, 3, 2.25),
        ({"ray_actor_options": {"num_cpus": 1}}, 3, 0.75),
        ({"ray_actor_options": {}, "placement_group_bundles": [{"CPU": 1}, {"GPU": 2}]}, 1, 2.75),
        ({}, 1, 0.75),
    ],
)
def test_the_shares_of_a_gpu_are_summed_over_all_applications(
    ray: RayServe, shares: dict[str, object], wanted: int, asked: float
) -> None:
    ray.shares["llm"], ray.wanted["llm"] = shares, wanted
    assert driver(ray).probe().gpus_asked == pytest.approx(asked)


def test_whose_cards_several_nodes_share_is_not_known(ray: RayServe) -> None:
    ray.nodes["two"] = "another"
    assert driver(ray).probe().gpus_asked is None


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://ann:secret@127.0.0.1", "http://", "http://["]
)
@pytest.mark.parametrize("option", ["proxy_url", "metrics_url"])
def test_an_address_that_is_none_is_an_error_of_the_configuration(
    ray: RayServe, option: str, url: str
) -> None:
    with pytest.raises(ConfigError, match=rf"options\.{option} must be") as caught:
        driver(ray, **{option: url})
    assert "secret" not in str(caught.value)
