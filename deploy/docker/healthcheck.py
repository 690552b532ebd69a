"""Asks a program on this machine whether it is well: ``healthcheck.py PORT PATH``; 0 when it answers 200.

For containers, where there is no curl. It uses the standard library only, and no proxy. Where the
web configuration has switched TLS on it asks by TLS. It has no password and no certificate: a
program that asks for them has answered, and counts as well.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import sys
from collections.abc import Sequence

_TIMEOUT_SECONDS = 4.0
_REFUSAL_SECONDS = 0.5
_WELL = frozenset({http.HTTPStatus.OK, http.HTTPStatus.UNAUTHORIZED})
# What a port that speaks TLS says to plain HTTP, where it does not just close.
_OTHER_SCHEME = http.HTTPStatus.BAD_REQUEST


def main(argv: Sequence[str]) -> int:
    """Ask by plain HTTP, then by TLS where that is no answer, and print what was answered.

    Args:
        argv: Port on loopback, and path.
    """
    port, path = int(argv[0]), argv[1]
    try:
        status, text = _asked(port, path)
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {error}")
        return 1
    print(status, text)
    return 0 if status in _WELL else 1


def _asked(port: int, path: str) -> tuple[int, str]:
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        answer = _answer(plain, path)
        if answer[0] != _OTHER_SCHEME:
            return answer
    except (ConnectionResetError, BrokenPipeError, http.client.HTTPException):
        pass
    # It is the port that is asked for, whatever name its certificate is for.
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    by_tls = http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=_TIMEOUT_SECONDS, context=trusting
    )
    try:
        by_tls.connect()
        _let_refuse(by_tls.sock)
        return _answer(by_tls, path)
    except ssl.SSLError as error:
        if "CERTIFICATE_REQUIRED" not in str(error.reason):
            raise
        return http.HTTPStatus.UNAUTHORIZED, "it wants a client certificate"
    finally:
        by_tls.close()


def _let_refuse(connection: ssl.SSLSocket) -> None:
    """Who wants a certificate says so after the handshake, and what is sent then hides it."""
    connection.settimeout(_REFUSAL_SECONDS)
    with contextlib.suppress(TimeoutError):
        connection.recv(1)
    connection.settimeout(_TIMEOUT_SECONDS)


def _answer(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(200).decode("utf-8", "replace").strip()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
