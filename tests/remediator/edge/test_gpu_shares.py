"""Shares of a GPU that come to more than there are cards: in `check`, the API and the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remediator.engine.watchers import ServiceView
from remediator.probe_metrics import shares
from remediator.services import ServiceProbe
from remediator.store import Store
from tests.remediator.edge.support import (
    GPU,
    SERVICE,
    TOKENS,
    ExporterStandIn,
    in_process,
    write_config,
)
from tests.remediator.engine.dialects import served
from tests.remediator.engine.ray_dialect import RayServe

Cli = Callable[..., tuple[int, str, str]]
WORDS = "the replicas of llm are to have 1.25 GPUs, and it has 1: lower"


@pytest.fixture
def ray() -> Iterator[RayServe]:
    """Two applications that are to have 1.25 GPUs together."""
    one = RayServe()
    with served(one):
        yield one


def settings(ray: RayServe, exporter: ExporterStandIn, gpus: object) -> dict[str, Any]:
    service = {**SERVICE, "name": "llm", "driver": "ray_serve", "endpoint": ray.url, "gpus": gpus}
    return {"services": [service], "exporter": {"url": exporter.url}}


@pytest.mark.parametrize("gpus", [[GPU], "all"])
def test_too_much_is_said_everywhere(
    tmp_path: Path, ray: RayServe, exporter: ExporterStandIn, gpus: object
) -> None:
    over = settings(ray, exporter, gpus)
    with in_process(tmp_path, **over) as made:
        with made.store.transaction() as tx:
            tx.inventory.remember_gpu(GPU, "a card", made.clock.now())
        made.remediator.prober.probe(made.remediator.world.services["llm"])
        client = made.app.test_client()
        read = {"Authorization": f"Bearer {TOKENS['read']}"}
        (service,) = client.get("/api/v1/services", headers=read).json["services"]
        page = client.get("/metrics").text
    assert service["gpus_asked"] == 1.25
    assert service["concern"].startswith(WORDS)
    assert 'llm_service_gpus_asked{llm_service="llm"} 1.25' in page
    assert 'llm_service_gpus_overcommitted{llm_service="llm"} 1.0' in page


def test_check_says_it_and_is_a_warning(
    tmp_path: Path, store: Store, ray: RayServe, exporter: ExporterStandIn, cli: Cli
) -> None:
    config = write_config(tmp_path, **settings(ray, exporter, [GPU]))
    code, out, _ = cli("check", f"--config.file={config}")
    assert WORDS in out
    assert code == 1
    ray.shares["two"] = {}
    assert cli("check", f"--config.file={config}")[0] == 0


@pytest.mark.parametrize(
    ("share", "gpus", "said"), [(0.25, [GPU], "0.0"), (0.5, "all", None), (0.5, [], "1.0")]
)
def test_what_fits_or_cannot_be_told_is_no_concern(
    tmp_path: Path,
    ray: RayServe,
    exporter: ExporterStandIn,
    share: float,
    gpus: object,
    said: str | None,
) -> None:
    ray.shares["llm"] = {"ray_actor_options": {"num_gpus": share}}
    with in_process(tmp_path, **settings(ray, exporter, gpus)) as made:
        made.remediator.prober.probe(made.remediator.world.services["llm"])
        page = made.app.test_client().get("/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("llm_service_gpus_over")]
    assert [line.rpartition(" ")[2] for line in lines] == ([] if said is None else [said])


def test_a_server_that_deals_in_no_shares_has_none(
    tmp_path: Path, exporter: ExporterStandIn
) -> None:
    with in_process(tmp_path, services=[SERVICE], exporter={"url": exporter.url}) as made:
        made.remediator.prober.probe(made.remediator.world.services["ollama"])
        assert "llm_service_gpus_asked{" not in made.app.test_client().get("/metrics").text


def test_a_service_that_a_reload_adds_during_a_scrape_does_not_fail_it() -> None:
    view = ServiceView(ServiceProbe("ready", "", gpus_asked=1.25), None, True, 0.0)
    found = {
        family.name: [sample.value for sample in family.samples]
        for family in shares({"new": None}, {"new": view}, {})
    }
    assert found == {"llm_service_gpus_asked": [1.25], "llm_service_gpus_overcommitted": []}
