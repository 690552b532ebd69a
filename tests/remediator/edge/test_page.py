"""The landing page: open to everybody, and silent about what operators call things."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remediator.edge.support import in_process

WINDOW = {"name": "move to rack 7", "start": "00:00", "end": "24:00"}


@pytest.mark.parametrize(
    ("role", "named"), [(None, False), ("webhook", False), ("read", True), ("operate", True)]
)
def test_the_name_of_a_window_is_for_who_may_read(
    tmp_path: Path, role: str | None, named: bool
) -> None:
    with in_process(tmp_path, windows=[WINDOW]) as made:
        reply = made.client(role).get("/")
    assert reply.status_code == 200
    assert "maintenance window" in reply.text
    assert ("move to rack 7" in reply.text) == named


def test_a_token_that_nobody_has_is_shown_what_everybody_sees(tmp_path: Path) -> None:
    with in_process(tmp_path, windows=[WINDOW]) as made:
        page = made.client().get("/").text
        wrong = made.client().get("/", headers={"Authorization": "Bearer nonsense"})
    assert (wrong.status_code, wrong.text) == (200, page)


@pytest.mark.parametrize("what", ["/api/v1/openapi.json", "approve", "deny", "/-/reload"])
def test_who_looks_for_it_finds_where_it_is(tmp_path: Path, what: str) -> None:
    with in_process(tmp_path) as made:
        assert what in made.client().get("/").text
