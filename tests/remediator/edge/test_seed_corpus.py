"""What has broken webhooks before, sent to the whole application: refused, and nothing is done."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import partial

import pytest

from remediator import alertmanager
from tests.remediator import fuzz_webhook
from tests.remediator.edge.support import TOKENS, InProcess, alert, body
from tests.remediator.edge.test_payload import ACCEPTED, REFUSED
from tests.remediator.engine.fakes import Card
from tests.remediator.fuzz_webhook import Request, answer

GOOD = body(alert())


@pytest.fixture(scope="module")
def armed() -> Iterator[InProcess]:
    with fuzz_webhook.target() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_done(armed: InProcess) -> Iterator[None]:
    yield
    armed.decide_all()
    with armed.store.reading() as tx:
        assert tx.runs.latest(1) == ()
        assert {one.state for one in tx.incidents.open_all()} <= {"refuted"}


def sent(armed: InProcess, raw: bytes, **over: str) -> tuple[int, str]:
    values = {"method": "POST", "path": "/webhook", "kind": "application/json", **over}
    status, answered = answer(armed, Request(token=TOKENS["webhook"], body=raw, **values))
    return status, answered.decode()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_delivery_is_400_and_says_why(armed: InProcess, case: str) -> None:
    raw, named = REFUSED[case]
    status, answered = sent(armed, raw)
    assert status == 400
    assert named.replace('"', '\\"') in answered


@pytest.mark.parametrize("case", sorted(set(ACCEPTED) - {"10k alerts"}))
def test_what_alertmanager_may_send_is_202(armed: InProcess, case: str) -> None:
    assert sent(armed, ACCEPTED[case])[0] == 202


@pytest.mark.parametrize(
    ("over", "status"),
    [
        ({"kind": "text/plain"}, 415),
        ({"kind": "application/x-www-form-urlencoded"}, 415),
        ({"kind": "application/json; charset=utf-16"}, 202),
        ({"method": "GET"}, 405),
        ({"method": "HEAD"}, 405),
        ({"method": "PUT"}, 405),
        ({"method": "TRACE"}, 405),
        ({"path": "/api/v1/alerts/"}, 404),
        ({"path": "/api/v1/../../etc/passwd"}, 404),
        ({"path": "/api/v1/alerts\0"}, 404),
        ({"path": "/webhook/../api/v1/pause"}, 404),
    ],
)
def test_another_way_of_asking_is_refused(
    armed: InProcess, over: dict[str, str], status: int
) -> None:
    assert sent(armed, GOOD, **over)[0] == status


def test_a_packed_body_is_400(armed: InProcess) -> None:
    status, answered = sent(armed, gzip.compress(GOOD))
    assert (status, "UTF-8" in answered) == (400, True)


def test_what_is_generated_breaks_no_promise() -> None:
    """The bounded form of `python -m tests.remediator.fuzz_webhook`."""
    report = fuzz_webhook.fuzz(1, 2500)
    assert report.problems == []
    assert report.answers[202] > 300
    assert report.answers[400] > 300
    assert report.decided > 20


def test_it_would_see_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_webhook, "Card", partial(Card, celsius=95.0))
    assert any("something was done" in one for one in fuzz_webhook.fuzz(1, 500).problems)


def test_it_would_see_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alertmanager, "MAX_LABELS", None)
    assert any("TypeError" in one or "500" in one for one in fuzz_webhook.fuzz(1, 50).problems)
