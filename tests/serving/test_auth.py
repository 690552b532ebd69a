"""Who is let in, and what guessing costs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving.auth import BasicAuth, Verdict
from serving.config import RateLimit, WebConfig
from serving.guard import Guard
from tests.exporter.fakes import FakeClock
from tests.serving.door import HASH, OWN_TOKEN, PASSWORD, Door, application, ask, basic

DEAR = "$2y$12$1DpfPeqF9HzHJt.EWswy1exHluGfbhnn3yXhR7Xes6m3WJqFg0Wby"
USERS = {"alice": HASH}


class Counting:
    """bcrypt that says yes to "secret", remembers what it was asked, and can be held up."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.asked.append((password, hashed))
        assert self.go_on.wait(20)
        return password == b"secret" and hashed == HASH.encode()


@pytest.fixture
def verify() -> Counting:
    return Counting()


@pytest.fixture
def auth(verify) -> BasicAuth:
    return BasicAuth(verify)


def test_the_real_hash() -> None:
    auth = BasicAuth()
    assert auth.check(USERS, basic("alice:secret"), "a") is Verdict.GRANTED
    assert auth.check(USERS, basic("alice:Secret"), "a") is Verdict.DENIED
    assert auth.check(USERS, basic("bob:secret"), "a") is Verdict.DENIED
    # Longer than bcrypt takes, and with what C would take for an end.
    for password in ("x" * 100, "secret\0", ""):
        assert auth.check(USERS, basic(f"alice:{password}"), "a") is Verdict.DENIED


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic %%%", "Basic YWxpY2U=", "Bearer YWxpY2U6c2VjcmV0", "Basic \xff\xfe"],
)
def test_what_is_no_password_is_denied_without_a_hash(auth, verify, header) -> None:
    assert auth.check(USERS, header, "a") is Verdict.DENIED
    assert verify.asked == []


def test_the_same_again_costs_no_hash(auth, verify) -> None:
    for password, verdict in (("secret", Verdict.GRANTED), ("wrong", Verdict.DENIED)):
        verify.asked.clear()
        for _ in range(3):
            assert auth.check(USERS, basic(f"alice:{password}"), "a") is verdict
        assert len(verify.asked) == 1


def test_a_changed_hash_is_asked_anew(auth, verify) -> None:
    assert auth.check(USERS, basic("alice:secret"), "a") is Verdict.GRANTED
    assert auth.check({"alice": DEAR}, basic("alice:secret"), "a") is Verdict.DENIED
    assert auth.check({"bob": HASH}, basic("alice:secret"), "a") is Verdict.DENIED


def test_an_unknown_user_costs_what_the_dearest_known_one_does(auth, verify) -> None:
    auth.check({"alice": HASH, "carol": DEAR}, basic("bob:secret"), "a")
    ((_, hashed),) = verify.asked
    assert hashed.startswith(b"$2b$12$")
    assert len(hashed) == len(HASH)


def test_guesses_do_not_push_out_who_is_known(auth, verify) -> None:
    auth.check(USERS, basic("alice:secret"), "a")
    for number in range(300):
        auth.check(USERS, basic(f"alice:{number}"), "b")
    verify.asked.clear()
    assert auth.check(USERS, basic("alice:secret"), "a") is Verdict.GRANTED
    assert verify.asked == []


def test_who_is_known_is_answered_while_others_guess(auth, verify, eventually) -> None:
    auth.check(USERS, basic("alice:secret"), "prometheus")
    verify.asked.clear()
    verify.go_on.clear()
    guesses = [
        threading.Thread(target=auth.check, args=(USERS, basic(f"alice:{peer}"), peer))
        for peer in ("b", "c")
    ]
    for guess in guesses:
        guess.start()
    # Both have their places; who asks before that would take one, and wait.
    eventually(lambda: len(auth._inside) == 2)
    eventually(lambda: verify.asked)
    assert auth.check(USERS, basic("alice:third"), "d") is Verdict.BUSY
    # A second guess from one address does not take the place that another could have.
    assert auth.check(USERS, basic("alice:again"), "b") is Verdict.BUSY
    assert auth.check(USERS, basic("alice:secret"), "prometheus") is Verdict.GRANTED
    # One hash at a time, however many wait.
    assert len(verify.asked) == 1
    verify.go_on.set()
    for guess in guesses:
        guess.join(20)
    assert auth.check(USERS, basic("alice:third"), "d") is Verdict.DENIED


def test_one_address_has_one_guess_under_way(auth, verify, eventually) -> None:
    verify.go_on.clear()
    guess = threading.Thread(target=auth.check, args=(USERS, basic("alice:1"), "b"))
    guess.start()
    eventually(lambda: verify.asked)
    assert auth.check(USERS, basic("alice:2"), "b") is Verdict.BUSY
    other: list[Verdict] = []
    admitted = threading.Thread(
        target=lambda: other.append(auth.check(USERS, basic("alice:secret"), "prometheus"))
    )
    admitted.start()
    verify.go_on.set()
    for thread in (guess, admitted):
        thread.join(20)
    assert other == [Verdict.GRANTED]


def guarded(clock: FakeClock | None = None, **config) -> Guard:
    return Guard(application, lambda: WebConfig(**config), clock or FakeClock(), PASSWORD)


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/nothing"])
def test_every_path_needs_the_password(path) -> None:
    guard = guarded(users=USERS)
    status, headers, _ = ask(guard, path)
    assert status == 401
    assert dict(headers)["WWW-Authenticate"].startswith('Basic realm="tests"')
    assert ask(guard, path, authorization=basic("alice:secret"))[0] in {200, 404}


def test_a_path_with_a_token_of_its_own_is_left_to_the_application() -> None:
    assert ask(guarded(users=USERS), OWN_TOKEN)[0] == 404


def test_an_application_that_asks_itself_is_left_to() -> None:
    guard = Guard(application, lambda: WebConfig(users=USERS), FakeClock(), None)
    assert ask(guard)[0] == 200


def test_headers_of_the_file_are_on_every_answer_once() -> None:
    wanted = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "deny"}
    guard = guarded(users=USERS, headers=wanted)
    for authorization in ("", basic("alice:secret")):
        _, headers, _ = ask(guard, authorization=authorization)
        names = [name for name, _ in headers]
        assert all(names.count(name) == 1 for name in wanted)
        assert dict(headers)["X-Frame-Options"] == "deny"


def test_a_rate_limit_lets_bursts_through_and_no_more() -> None:
    clock = FakeClock()
    guard = guarded(clock, rate_limit=RateLimit(2.0, 2))
    assert [ask(guard)[0] for _ in range(3)] == [200, 200, 429]
    clock.now += 1.9
    assert ask(guard)[0] == 429
    clock.now += 0.2
    assert [ask(guard)[0] for _ in range(2)] == [200, 429]
    clock.now += 1000
    assert [ask(guard)[0] for _ in range(3)] == [200, 200, 429]


def test_many_who_guess_do_not_keep_a_scrape_out(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: {HASH}, carol: {DEAR}}}")
    door = Door(path)
    try:
        assert door.get(user="alice:secret")[0] == 200
        answers: list[int] = []
        guessing = [
            threading.Thread(
                target=lambda number=number: answers.append(door.get(user=f"x:{number}")[0])
            )
            for number in range(20)
        ]
        for one in guessing:
            one.start()
        assert door.get(user="alice:secret")[0] == 200
        for one in guessing:
            one.join(30)
        # Of one address, one hash at a time; whoever is not answered so is not made to wait.
        assert set(answers) <= {401, 429}
        assert len(answers) == 20
    finally:
        door.close()
