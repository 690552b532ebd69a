"""What certificates say of themselves."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from serving.certificate import earliest_expiry, names
from serving.live import LiveConfig
from tests.serving.door import HASH, SERVER, TLS


def openssl_says(name: str) -> float:
    """When it ends, by Python's own private reader."""
    decoded = ssl._ssl._test_decode_cert(str(TLS / f"{name}.pem"))
    return ssl.cert_time_to_seconds(decoded["notAfter"])


@pytest.mark.parametrize("name", ["server", "client", "ca", "stranger"])
def test_the_end_is_the_one_that_openssl_reads(name) -> None:
    assert earliest_expiry((TLS / f"{name}.pem").read_text()) == openssl_says(name)


def test_of_several_it_is_the_earliest() -> None:
    both = [TLS / "server.pem", TLS / "ca.pem"]
    text = "".join(path.read_text() for path in both)
    assert earliest_expiry(text) == min(openssl_says("server"), openssl_says("ca"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_cannot_be_read_has_no_end(text) -> None:
    assert earliest_expiry(text) is None


def test_a_certificate_is_called_by_its_alternative_names() -> None:
    shown = {
        "subject": ((("commonName", "alice"),),),
        "subjectAltName": (("DNS", "a.example"), ("IP Address", "0:0:0:0:0:0:0:1")),
    }
    assert names(shown) == ("a.example", "::1")


def test_without_them_by_its_common_name_and_nobody_else_is_anybody() -> None:
    assert names({"subject": ((("commonName", "alice"),),)}) == ("alice",)
    assert names({}) == names(None) == ()


def test_the_state_says_whether_what_the_file_says_is_in_force(tmp_path: Path) -> None:
    class Clock:
        now = 1000.0

        def time(self) -> float:
            return self.now

        def monotonic(self) -> float:
            return self.now

    path, clock = tmp_path / "web.yml", Clock()
    path.write_text(f"tls_server_config:\n{SERVER}")
    live = LiveConfig(path, clock=clock)
    assert (live.state().is_current, live.state().since) == (True, 1000.0)
    assert live.state().certificate_expires == openssl_says("server")
    clock.now = 2000.0
    path.write_text("tls_server_config: [")
    assert (live.state().is_current, live.state().since) == (False, 1000.0)
    path.write_text(f"tls_server_config:\n{SERVER}basic_auth_users: {{alice: {HASH}}}\n")
    assert (live.state().is_current, live.state().since) == (True, 2000.0)
    clock.now = 3000.0
    assert live.state().since == 2000.0


def test_without_tls_there_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "web.yml"
    path.write_text(f"basic_auth_users: {{alice: {HASH}}}\n")
    assert LiveConfig(path).state().certificate_expires is None
