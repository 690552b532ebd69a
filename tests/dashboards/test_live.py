"""Every query of both dashboards on a real Prometheus, while a card is hot and another is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from deploy.local.http import get_json
from deploy.local.options import Options
from deploy.local.stack import Stack
from deploy.local.waiting import poll
from tests.dashboards import shipped
from tests.dashboards.shipped import Query

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

HOT, ALSO_HOT, LOST = 0, 1, 2
HEALTH = {"healthy": 0, "warning": 1, "critical": 2, "unknown": -1}
ABSENT = -1.0
LOOK_BACK_SECONDS = 120

# What gives nothing on this stack, and why. A query that does give something may not stand here.
NOTHING = {
    "gpu-fleet/Cards/I": "the simulated cards are passively cooled: no fan",
    "gpu-fleet/Fans/A": "the same",
    "gpu-fleet/What the driver asks for/A": "the simulated driver tells of no wear and of no Xid",
    "gpu-fleet/Xid errors heard/A": "the same",
    "gpu-fleet/Xid errors/A": "the same",
    "gpu-fleet/ECC errors/A": "the same",
    "gpu-fleet/Memory repaired/A": "the same",
    "gpu-fleet/Memory repaired/B": "the same",
    "gpu-fleet/Row remapping/A": "the same",
    "gpu-fleet/Row remapping/B": "the same",
    "gpu-fleet/PCIe lanes/A": "the simulated cards have no links and are not divided; see test_links.py",
    "gpu-fleet/PCIe lanes/B": "the same",
    "gpu-fleet/PCIe errors/A": "the same",
    "gpu-fleet/PCIe errors/B": "the same",
    "gpu-fleet/NVLink errors/A": "the same",
    "gpu-fleet/NVLink traffic/A": "the same",
    "gpu-fleet/Memory of MIG devices/A": "the same",
    "gpu-fleet/Utilisation by process/A": "the simulated driver tells of no process how much it computes",
    "gpu-fleet/Requests/A": "Ollama does not say how many requests are in work",
    "gpu-fleet/Requests/B": "nor how many wait",
    "gpu-remediation/Progress/A": "nor how many tokens it made",
    "gpu-remediation/Waits after a start/A": "no service is restarted here",
    "gpu-remediation/Waits after a start/B": "the same",
    "gpu-remediation/Waits after a start/C": "nor does Ollama count how long its users wait",
    "gpu-remediation/Less load, more asked/A": "no second manager is configured",
    "gpu-remediation/Less load, more asked/B": "only Ray Serve deals in shares of a card",
    "gpu-remediation/Internal errors/A": "only after a bug",
    "gpu-remediation/Alertmanagers that answer/A": "no Alertmanager is asked here",
    "gpu-remediation/Found by asking Alertmanager/C": "the same",
    "gpu-remediation/Certificate ends in/A": "nor is there TLS",
    "gpu-remediation/What holds it back/D": "nor a maintenance window",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("dashboards"), Options(gpus=3)) as running:
        running.start_load()
        running.inject("lose", LOST)
        running.inject("heat", HOT, celsius=84)
        _until_verified(running, 1)
        # The second of its kind: `increase()` cannot see a series' first event.
        running.inject("heat", ALSO_HOT, celsius=84)
        _until_verified(running, 2)
        yield running


def _until_verified(stack: Stack, count: int) -> None:
    def verified() -> bool:
        return sum(record["event"] == "verified" for record in stack.audit()) >= count

    assert poll(verified, timeout=90), stack.audit()


def ask(stack: Stack, query: Query) -> list[float]:
    """Every value that a panel would show."""
    expr = shipped.substituted(query.expr)
    if query.instant:
        return [float(one["value"][1]) for one in stack.query(expr)]
    now = time.time()
    window = {"query": expr, "start": now - LOOK_BACK_SECONDS, "end": now, "step": 2}
    url = f"{stack.urls.prometheus}/api/v1/query_range?{urlencode(window)}"
    found = get_json(url)["data"]["result"]
    return [float(value) for series in found for _, value in series["values"]]


def shows_something(stack: Stack, query: Query) -> bool:
    # NaN is not a number that anybody could read off a panel.
    return any(value == value and value != ABSENT for value in ask(stack, query))


def test_every_query_shows_something(stack):
    missing = {
        query.where: query.expr
        for query in (*shipped.queries(), *shipped.annotations())
        if query.where not in NOTHING
    }
    by_name = {query.where: query for query in (*shipped.queries(), *shipped.annotations())}
    assert set(NOTHING) <= set(by_name)

    def all_shown() -> bool:
        for name in [name for name in missing if shows_something(stack, by_name[name])]:
            del missing[name]
        return not missing

    assert poll(all_shown, timeout=90, interval=1), json.dumps(missing, indent=1)


def test_what_is_excused_really_shows_nothing(stack):
    shown = [
        query.where
        for query in shipped.queries()
        if query.where in NOTHING and shows_something(stack, query)
    ]
    assert shown == []


def test_health_is_what_the_exporter_says(stack):
    column = next(q for q in shipped.queries() if q.where == "gpu-fleet/Cards/A")

    def agree() -> bool:
        expected = {gpu["uuid"]: HEALTH[gpu["health"]] if gpu["up"] else 3 for gpu in stack.gpus()}
        found = {
            one["metric"]["uuid"]: float(one["value"][1])
            for one in stack.query(shipped.substituted(column.expr))
        }
        return found == expected and len(set(found.values())) > 1

    assert poll(agree, timeout=60, interval=0.5)


def test_a_card_without_readings_is_not_healthy(stack):
    column = next(q for q in shipped.queries() if q.where == "gpu-fleet/Cards/A")
    uuid = stack.gpus()[LOST]["uuid"]
    found = {
        one["metric"]["uuid"]: float(one["value"][1])
        for one in stack.query(shipped.substituted(column.expr))
    }
    assert found[uuid] == 3


@pytest.mark.parametrize("path", shipped.FILES, ids=lambda path: path.stem)
def test_every_variable_offers_something(stack, path):
    for variable in shipped.load(path)["templating"]["list"]:
        if variable["type"] != "query":
            continue
        kind, inner = re.fullmatch(r"(\w+)\((.+)\)", variable["definition"]).groups()
        label = ""
        if kind == "label_values":
            inner, _, label = inner.rpartition(", ")
        found = [one["metric"] for one in stack.query(shipped.substituted(inner))]
        assert found, variable["name"]
        assert all(label in metric for metric in found if label)
        if kind == "query_result":
            pattern = variable["regex"].strip("/").replace("(?<", "(?P<")
            offered = [re.search(pattern, _as_grafana_shows(metric)) for metric in found]
            assert {one["value"] for one in offered} == {gpu["uuid"] for gpu in stack.gpus()}
            assert len({one["text"] for one in offered}) == len(stack.gpus())


def _as_grafana_shows(metric):
    return "{" + ",".join(f'{key}="{value}"' for key, value in metric.items()) + "} 1 1763760000000"
