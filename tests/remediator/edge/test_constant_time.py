"""Secrets are compared by `hmac.compare_digest` alone: what it says is what counts, for each kind."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator.store import Draft
from remediator.store.approvals import Approval
from remediator.store.emergency import EmergencyJournal
from remediator.web.auth import Tokens
from serving.auth import BasicAuth, Verdict
from tests.remediator.edge.support import KEY, FakeClock
from tests.remediator.quick_store import QuickStore
from tests.serving.door import HASH, basic

TOKENS = Tokens(webhook="w" * 32, read="r" * 32, operate="o" * 32)
ROLES = ("webhook", "read", "operate")


class Digests:
    """In place of `hmac.compare_digest`: remembers what it was asked, and may say no to all of it."""

    def __init__(self) -> None:
        self.asked: list[set[bytes]] = []
        self.denies = False
        self._real = hmac.compare_digest

    def __call__(self, one: str | bytes, other: str | bytes) -> bool:
        pair = [text.encode() if isinstance(text, str) else bytes(text) for text in (one, other)]
        self.asked.append(set(pair))
        return not self.denies and self._real(*pair)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Digests]:
    found = Digests()
    monkeypatch.setattr(hmac, "compare_digest", found)
    return found


@pytest.mark.parametrize("role", ROLES)
def test_a_token_is_compared_with_that_of_every_role(digests: Digests, role: str) -> None:
    token = getattr(TOKENS, role)
    assert TOKENS.roles_of(token) == {role}
    # No role is left out once one was found, so that the time does not tell which.
    assert digests.asked == [{token.encode(), getattr(TOKENS, one).encode()} for one in ROLES]
    digests.denies = True
    assert TOKENS.roles_of(token) is None


def test_the_token_of_an_approval(digests: Digests) -> None:
    asked = Approval(1, "t" * 32, {}, {}, None, "")
    assert asked.matches("t" * 32)
    assert not asked.matches("t" * 31)
    assert digests.asked[1] == {b"t" * 32, b"t" * 31}
    digests.denies = True
    assert not asked.matches("t" * 32)


def test_the_mac_of_an_entry_of_the_emergency_journal(digests: Digests, tmp_path: Path) -> None:
    EmergencyJournal(tmp_path, KEY).append("undone", lease=1)
    assert len(EmergencyJournal(tmp_path, KEY).entries) == 1
    digests.denies = True
    again = EmergencyJournal(tmp_path, KEY)
    assert (again.entries, again.unreadable) == ([], 1)


def test_the_macs_of_the_audit(digests: Digests, tmp_path: Path) -> None:
    store = QuickStore(tmp_path, KEY, FakeClock())
    with store.transaction() as tx:
        tx.audit(Draft("decision", "x"))
    with store.reading() as tx:
        assert tx.verify_audit().broken_at is None
        digests.denies = True
        assert tx.verify_audit().broken_at == 1
    store.close()


def test_a_password_is_compared_by_bcrypt_alone() -> None:
    asked = []
    door = BasicAuth(lambda password, hashed: bool(asked.append((password, hashed))))
    verdict = door.check({"ann": HASH}, basic("ann:guess"), "127.0.0.1")
    assert (verdict, [hashed for _, hashed in asked]) == (Verdict.DENIED, [HASH.encode()])
