"""Basic authentication against bcrypt hashes, so that guessing costs the guesser and nobody else."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

import bcrypt

# bcrypt looks at no more, and the library refuses more.
_PASSWORD_BYTES = 72
_REMEMBERED = 100
# One hash is computed at a time, and one more may wait: there are more threads than that, so
# whoever is known already is answered beside them.
_PLACES = 2
_NOBODY = "." * 53

Verify = Callable[[bytes, bytes], bool]


class Verdict(Enum):
    """What is known of who asks."""

    GRANTED = "granted"
    DENIED = "denied"
    BUSY = "busy"


class BasicAuth:
    """Checks passwords, one at a time, and remembers for a while what it found.

    An unknown user costs the time of a known one. What was granted is remembered apart from what
    was denied, so that guesses cannot push it out. Neither passwords nor hashes are kept.
    """

    def __init__(self, verify: Verify = bcrypt.checkpw) -> None:
        self._verify = verify
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._hashing = threading.Lock()
        self._inside: list[tuple[str, bytes]] = []
        self._known: dict[bool, OrderedDict[bytes, None]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }

    def check(self, users: Mapping[str, str], header: str, peer: str) -> Verdict:
        """Judge one request.

        Args:
            users: bcrypt hash by name.
            header: `Authorization`, as WSGI gives it; empty without one.
            peer: the address that asks. It may have one guess under way.
        """
        presented = _credentials(header)
        if presented is None:
            return Verdict.DENIED
        user, password = presented
        expected = {name.encode(): hashed.encode() for name, hashed in users.items()}
        # Looked up last, and for everybody: what is unknown is hashed like the rest.
        hashed = expected.get(user, _nobody(users))
        key = self._key(user, hashed, password)
        verdict = self._remembered(key)
        if verdict is not None:
            return verdict
        with self._place(peer, key) as admitted:
            if not admitted:
                return Verdict.BUSY
            with self._hashing:
                return self._remembered(key) or self._judge(key, user in expected, hashed, password)

    def _judge(self, key: bytes, is_known: bool, hashed: bytes, password: bytes) -> Verdict:
        try:
            matches = self._verify(password[:_PASSWORD_BYTES], hashed)
        except ValueError:
            matches = False
        granted = matches and is_known
        with self._lock:
            known = self._known[granted]
            known[key] = None
            while len(known) > _REMEMBERED:
                known.popitem(last=False)
        return Verdict.GRANTED if granted else Verdict.DENIED

    def _remembered(self, key: bytes) -> Verdict | None:
        with self._lock:
            for granted, known in self._known.items():
                if key in known:
                    known.move_to_end(key)
                    return Verdict.GRANTED if granted else Verdict.DENIED
        return None

    @contextmanager
    def _place(self, peer: str, key: bytes) -> Iterator[bool]:
        place = (peer, key)
        with self._lock:
            guesses = any(other == peer and its != key for other, its in self._inside)
            admitted = len(self._inside) < _PLACES and not guesses
            if admitted:
                self._inside.append(place)
        try:
            yield admitted
        finally:
            if admitted:
                with self._lock:
                    self._inside.remove(place)

    def _key(self, *parts: bytes) -> bytes:
        digests = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hmac.digest(self._secret, digests, "sha256")


def user_of(header: str) -> str:
    """Return the user that `Authorization` names, whatever the password; empty without one."""
    presented = _credentials(header)
    return "" if presented is None else presented[0].decode("utf-8", "replace")


def _credentials(header: str) -> tuple[bytes, bytes] | None:
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(text.strip().encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        return None
    user, colon, password = decoded.partition(b":")
    return (user, password) if colon else None


def _nobody(users: Mapping[str, str]) -> bytes:
    """A hash that no password has, as dear as the dearest of the users."""
    cost = max(int(hashed[4:6]) for hashed in users.values())
    return f"$2b${cost:02d}${_NOBODY}".encode()
