"""The Kubernetes API over HTTPS: a service account's token, read anew for each call, and its CA.

A write that was not answered is not repeated here: whoever asked for it looks at the world again
(`LostError`). A read is repeated for some seconds: an API server that is
being replaced is back by then, or another one answers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

from remediator import http
from remediator.clock import Clock
from remediator.config.strict import Seconds
from remediator.errors import ManagerError, ServiceError, ServiceRefused

Written = Literal["done", "conflict"]
"""`conflict`: it has changed since we looked, nothing was done."""

_Read = TypeVar("_Read")

IN_CLUSTER = "https://kubernetes.default.svc"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_SENTENCE = 300
_DELETION = {"apiVersion": "v1", "kind": "DeleteOptions"}
_UNAUTHORIZED, _FORBIDDEN, _GONE, _CONFLICT = 401, 403, 404, 409
# The next page of a list cannot be had any more: read it from its beginning.
_EXPIRED, _TOO_MANY = 410, 429
# A server or a proxy before it gave up on a request that may still be carried out.
_PERHAPS_DONE = (500, 502, 503, 504)
_READ_AGAIN_FOR, _PAUSE, _NEVER = 2.0, 1.0, threading.Event()
# Objects of a page, and how many pages are more than any namespace needs.
_PAGE, _MOST_PAGES = 100, 50


class AwayError(ManagerError):
    """The API server did not answer, or said "not now"; nothing was changed."""


class LostError(ManagerError):
    """No answer to a write, or one that leaves open whether it was, or will be, carried out."""


class RefusedError(ManagerError):
    """The API server said no, and would again; `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def gone(self) -> bool:
        """Whether there is no such object."""
        return self.status == _GONE


class Api:
    """One API server, as one service account."""

    def __init__(
        self, url: str, token_file: Path, ca_file: Path, timeout: Seconds, clock: Clock
    ) -> None:
        """Nothing is asked yet.

        Args:
            url: `https://HOST:PORT`, or `http://127.0.0.1:PORT` of a proxy that logs in by itself.
            token_file: The bearer token; kubelet puts a new one there about every hour.
            ca_file: Whom to trust.
            timeout: Seconds for one call.
            clock: Waits between two reads.
        """
        self._url, self._clock = url.rstrip("/"), clock
        self._token_file, self._timeout = token_file, timeout
        self._tls = urlsplit(url).scheme == "https"
        self._access = http.Access(ca_file=ca_file) if self._tls else http.Access()

    def get(self, path: str) -> Mapping[str, Any]:
        """An object.

        Raises:
            RefusedError: the server said no.
            AwayError: it cannot be asked now.
            ManagerError: it cannot be asked, or answers what is no object.
        """
        return self._again(lambda: self._object(self._asked("GET", path)))

    def list(self, path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        """A list, read page by page, as one.

        Raises:
            RefusedError: the server said no.
            AwayError: it cannot be asked now.
            ManagerError: it cannot be asked, answers what is no list, or has too much.
        """
        found: list[Any] = []
        asked = {**query, "limit": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            page = self.get(f"{path}?{urlencode(asked)}")
            items, meta = page.get("items"), page.get("metadata") or {}
            if not isinstance(items, list) or not isinstance(meta, dict):
                raise ManagerError(f"the API server answered what is no list for {path}")
            found += items
            if not meta.get("continue"):
                return {"items": found}
            asked["continue"] = str(meta["continue"])
        raise ManagerError(f"the API server has more than {_MOST_PAGES * _PAGE} objects for {path}")

    def text(self, path: str, max_bytes: int) -> bytes:
        """What is no object, like a log.

        Raises:
            RefusedError: the server said no.
            ManagerError: it cannot be asked.
        """
        return self._again(lambda: self._asked("GET", path, max_bytes=max_bytes).body)

    def review(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the server says of our own rights (a SelfSubjectAccessReview); changes nothing.

        Raises:
            ManagerError: it cannot be asked.
        """
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return self._object(self._asked("POST", path, body))

    def patch(self, path: str, body: Mapping[str, Any]) -> Written:
        """Merge `body` into an object; with a `resourceVersion` in it only into that version.

        Raises:
            RefusedError: the server said no.
            AwayError: it cannot be asked now, and nothing was done.
            LostError: perhaps it was done.
        """
        return self._write("PATCH", f"{path}?fieldManager=gpu-remediator", body)

    def delete(self, path: str, uid: str) -> Written:
        """Delete the object with this uid; one that is gone is done.

        Raises:
            RefusedError: the server said no.
            AwayError: it cannot be asked now, and nothing was done.
            LostError: perhaps it was done.
        """
        try:
            return self._write("DELETE", path, {**_DELETION, "preconditions": {"uid": uid}})
        except RefusedError as error:
            if error.gone:
                return "done"
            raise

    def _again(self, read: Callable[[], _Read]) -> _Read:
        began = self._clock.monotonic()
        while True:
            try:
                return read()
            except AwayError:
                if self._clock.monotonic() - began >= _READ_AGAIN_FOR:
                    raise
            self._clock.wait(_NEVER, _PAUSE)

    def _write(self, method: Literal["PATCH", "DELETE"], path: str, body: Any) -> Written:
        try:
            answer = self._call(method, path, body)
        except ServiceRefused as error:
            raise self._silent(error) from None
        except ServiceError as error:
            raise LostError(str(self._silent(error))) from None
        if answer.status == _CONFLICT:
            return "conflict"
        if answer.status in _PERHAPS_DONE:
            raise LostError(_said(answer, method, path))
        self._check(answer, method, path)
        return "done"

    def _asked(
        self, method: str, path: str, body: Any = None, *, max_bytes: int = http.MAX_BYTES
    ) -> http.Answer:
        try:
            answer = self._call(method, path, body, max_bytes)
        except ServiceError as error:
            raise self._silent(error) from None
        self._check(answer, method, path)
        return answer

    def _call(
        self, method: str, path: str, body: Any, max_bytes: int = http.MAX_BYTES
    ) -> http.Answer:
        kind = {"PATCH": "application/merge-patch+json"}.get(method, "application/json")
        return http.call(
            method,
            self._url + path,
            timeout=self._timeout,
            body=body,
            token=self._token() if self._tls else None,
            headers={} if body is None else {"Content-Type": kind},
            access=self._access,
            max_bytes=max_bytes,
        )

    def _token(self) -> str:
        try:
            return self._token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it is not text"
            raise ManagerError(
                f"the token of the service account cannot be read from {self._token_file}: {why}; "
                "set manager.token_file, or run in a pod with a service account"
            ) from None

    def _silent(self, error: ServiceError) -> AwayError:
        return AwayError(f"the API server at {self._url}: {error}")

    def _check(self, answer: http.Answer, method: str, path: str) -> None:
        if 200 <= answer.status < 300:
            return
        said = _said(answer, method, path)
        if answer.status == _UNAUTHORIZED:
            said += f": the token in {self._token_file} is not accepted"
        elif answer.status == _FORBIDDEN:
            said += ": its service account needs deploy/kubernetes/role.yaml"
        if answer.status in (_EXPIRED, _TOO_MANY, *_PERHAPS_DONE):
            raise AwayError(said)
        raise RefusedError(said, answer.status)

    def _object(self, answer: http.Answer) -> Mapping[str, Any]:
        try:
            found = answer.json()
        except ServiceError as error:
            raise self._silent(error) from None
        if not isinstance(found, dict):
            raise ManagerError(f"the answer of {self._url} is not one of a Kubernetes API server")
        return found


def is_address(url: str) -> bool:
    """Whether `url` is one of an API server: TLS, or loopback, where a proxy logs in by itself."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    plain = not parts.path.strip("/") and not parts.query and "@" not in parts.netloc
    secure = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    return bool(host) and plain and secure


def _said(answer: http.Answer, method: str, path: str) -> str:
    return f"{method} {path.partition('?')[0]}: HTTP {answer.status}, {_message(answer)}"


def _message(answer: http.Answer) -> str:
    """The server's own words (`Status.message`)."""
    try:
        found = answer.json()
    except ServiceError:
        found = None
    said = found.get("message") if isinstance(found, dict) else None
    return str(said or "no reason given")[:_MAX_SENTENCE]
