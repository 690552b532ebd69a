"""HTTPS with what `--web.config.file` says, over real sockets."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import ConfigError
from tests.serving.door import CA, HASH, SERVER, TLS, Door, ask_again, trusting

CLIENTS = f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {CA}\n"
Opening = Callable[..., Door]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opening]:
    doors: list[Door] = []

    def make(tls: str = "", rest: str = "", **more) -> Door:
        path = tmp_path / "web.yml"
        path.write_text(f"tls_server_config:\n{SERVER}{tls}{rest}")
        doors.append(Door(path, **more))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def served_by(door: Door, **limits) -> tuple[str, str, str]:
    """The name of the server's certificate, the version and the suite of a connection."""
    client = trusting()
    for name, value in limits.items():
        setattr(client, name, value)
    with (
        door.connect() as plain,
        client.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        subject = dict(pair for part in secured.getpeercert()["subject"] for pair in part)
        return subject["commonName"], secured.version(), secured.cipher()[0]


def refused(door: Door, client: ssl.SSLContext) -> bool:
    try:
        door.get(client=client)
    except (ssl.SSLError, ConnectionError):
        return True
    return False


def test_a_scrape_over_tls_is_the_page(opened) -> None:
    status, headers, body = opened().get("/metrics")
    assert status == 200
    assert len(body) == int(headers["Content-Length"])
    assert b"gpu_up 1" in body


def test_a_connection_serves_one_request_after_another(opened) -> None:
    door = opened()
    with (
        door.connect() as plain,
        trusting().wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        for _ in range(3):
            assert ask_again(secured).startswith(b"HTTP/1.1 200")


def test_a_long_answer_arrives_whole_at_a_client_that_reads_slowly(opened) -> None:
    body = bytes(range(256)) * 40_000

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    door = opened(app=app)
    with (
        door.connect() as plain,
        trusting().wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        # Until the network is full on both sides, so that the server has to come back to it.
        assert door.get("/")[2] == body
        read = b"".join(iter(lambda: secured.recv(5000), b""))
    assert read.partition(b"\r\n\r\n")[2] == body


def test_who_speaks_plain_http_is_told(opened) -> None:
    with opened().connect() as plain:
        plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"HTTPS" in plain.recv(4096)


def test_versions_are_those_of_the_file(opened) -> None:
    assert served_by(opened())[1] == "TLSv1.3"
    only_old = opened("  max_version: TLS12\n")
    assert served_by(only_old)[1] == "TLSv1.2"
    only_new = opened("  min_version: TLS13\n")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served_by(only_new, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_cipher_suites_are_those_of_the_file_in_its_order(opened) -> None:
    suites = (
        "  max_version: TLS12\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,"
        " TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n"
    )
    assert served_by(opened(suites))[2] == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_with_suites_of_tls_13_alone_nothing_older_is_spoken(opened) -> None:
    door = opened("  cipher_suites: [TLS_AES_128_GCM_SHA256]\n")
    assert served_by(door)[1] == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        served_by(door, maximum_version=ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("curve", ["CurveP256", "CurveP384", "CurveP521"])
def test_one_curve_can_be_chosen(opened, curve) -> None:
    assert opened(f"  curve_preferences: [{curve}]\n").get("/-/healthy")[0] == 200


def test_x25519_is_served_or_refused_where_this_python_cannot(opened) -> None:
    try:
        door = opened("  curve_preferences: [X25519]\n")
    except ConfigError as error:
        said = str(error)
    else:
        said = str(door.get("/-/healthy")[0])
    assert said == "200" or said.endswith("OpenSSL here refuses the suites or the curve")


def test_a_client_needs_a_certificate_of_the_ca(opened) -> None:
    door = opened(CLIENTS)
    assert door.get(client=trusting("client"))[0] == 200
    assert refused(door, trusting())
    assert refused(door, trusting("stranger"))


def test_a_certificate_that_need_not_be_shown_must_still_be_good(opened) -> None:
    door = opened(f"  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: {CA}\n")
    assert door.get(client=trusting())[0] == 200
    assert door.get(client=trusting("client"))[0] == 200
    assert refused(door, trusting("stranger"))


@pytest.mark.parametrize(
    ("names", "welcome"),
    [
        ("[other.example, scraper.example]", True),
        ("['spiffe://example/prometheus']", True),
        ("['::1']", True),
        ("[scraper.example.org, client]", False),
    ],
)
def test_a_client_needs_one_of_the_names(opened, names, welcome) -> None:
    door = opened(f"{CLIENTS}  client_allowed_sans: {names}\n")
    assert refused(door, trusting("client")) is not welcome


def test_a_certificate_in_the_ca_file_is_trusted_as_it_is(opened) -> None:
    door = opened(
        f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {TLS}/client.pem\n"
    )
    assert door.get(client=trusting("client"))[0] == 200
    assert refused(door, trusting("stranger"))


def test_certificate_key_and_ca_may_stand_in_the_file(tmp_path) -> None:
    def inline(name: str) -> str:
        return "|\n    " + (TLS / name).read_text().strip().replace("\n", "\n    ")

    path = tmp_path / "web.yml"
    path.write_text(
        f"tls_server_config:\n  cert: {inline('server.pem')}\n  key: {inline('server.key')}\n"
        f"  client_ca: {inline('ca.pem')}\n  client_auth_type: RequireAndVerifyClientCert\n"
    )
    door = Door(path)
    try:
        assert door.get(client=trusting("client"))[0] == 200
        assert refused(door, trusting())
    finally:
        door.close()


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[tuple[Path, Door]]:
    for suffix in ("pem", "key"):
        shutil.copy(TLS / f"server.{suffix}", tmp_path / f"own.{suffix}")
    path = tmp_path / "web.yml"
    # Relative to the file, not to where the server was started.
    path.write_text("tls_server_config: {cert_file: own.pem, key_file: own.key}\n")
    door = Door(path)
    yield tmp_path, door
    door.close()


def test_a_renewed_certificate_is_served_from_the_next_connection_on(rotating) -> None:
    folder, door = rotating
    assert served_by(door)[0] == "server"
    shutil.copy(TLS / "renewed.pem", folder / "own.pem")
    # The key is still the old one: the two do not fit, so what was there stays.
    assert served_by(door)[0] == "server"
    shutil.copy(TLS / "renewed.key", folder / "own.key")
    assert served_by(door)[0] == "renewed"


@pytest.mark.parametrize("broken", ["", "tls_server_config: [", "tls_server_config: {}", "x: y"])
def test_a_file_that_cannot_be_used_changes_nothing(rotating, broken) -> None:
    folder, door = rotating
    (folder / "web.yml").write_text(broken)
    assert served_by(door)[0] == "server"
    assert door.get()[0] == 200
    (folder / "web.yml").unlink()
    assert served_by(door)[0] == "server"


def test_a_changed_file_is_in_force_at_once(rotating) -> None:
    folder, door = rotating
    users = f"basic_auth_users: {{alice: {HASH}}}\n"
    with (folder / "web.yml").open("a") as file:
        file.write(users)
    assert door.get()[0] == 401
    assert door.get(user="alice:secret")[0] == 200
