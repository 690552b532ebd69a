"""The remediator reads an exporter that asks for a certificate and a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remediator import exporter_access, exporter_release
from remediator.config import ExporterConfig
from remediator.errors import ConfigError, ControlError, NoEvidence
from remediator.exporter_client import ExporterClient
from tests.exporter.web_page import PASSWORD, application
from tests.serving.door import CA, HASH, SERVER, TLS, Door


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    path = tmp_path / "web.yml"
    path.write_text(
        f"tls_server_config:\n{SERVER}  client_auth_type: RequireAndVerifyClientCert\n"
        f"  client_ca_file: {CA}\nbasic_auth_users: {{remediator: {HASH}}}\n"
    )
    opened = Door(path, application(), password=PASSWORD)
    yield opened
    opened.close()


@pytest.fixture
def keys(tmp_path: Path, door) -> dict[str, object]:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "token").write_text("t" * 20)
    return {
        "url": f"https://127.0.0.1:{door.port}",
        "ca_file": CA,
        "cert_file": TLS / "client.pem",
        "key_file": TLS / "client.key",
        "username": "remediator",
        "password_file": tmp_path / "password",
    }


def read(keys: dict[str, object]) -> int:
    config = ExporterConfig(**keys)
    return len(ExporterClient(config.url, 20.0, exporter_access.create(config)).all())


def test_with_certificate_and_password_it_reads_the_cards(keys) -> None:
    assert read(keys) == 2


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (("ca_file",), "no TLS with it"),
        (("cert_file", "key_file"), "did not answer"),
        (("username", "password_file"), "exporter.password_file"),
    ],
)
def test_without_one_of_them_it_says_which(keys, without, said) -> None:
    with pytest.raises(NoEvidence, match=said):
        read({key: value for key, value in keys.items() if key not in without})


def test_the_release_shows_its_token_and_not_the_password(keys, tmp_path) -> None:
    config = ExporterConfig(**keys, release_token_file=tmp_path / "token")
    # This exporter was started without one: that is what it answers, and not 401.
    with pytest.raises(ControlError, match="HTTP 404"):
        exporter_release.create(config).let_go(10)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"password_file": None}, "give both or neither"),
        ({"key_file": None}, "give both or neither"),
        ({"url": "http://127.0.0.1:1"}, "unless exporter.url is https"),
        ({"ca_file": Path("/nothing.pem")}, "cannot read /nothing.pem"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(keys, changed, said) -> None:
    with pytest.raises(ConfigError, match=said):
        exporter_access.create(ExporterConfig(**{**keys, **changed}))


def test_a_file_that_went_away_since_is_no_evidence(keys, tmp_path) -> None:
    keys["ca_file"] = tmp_path / "ca.pem"
    keys["ca_file"].write_bytes(CA.read_bytes())
    config = ExporterConfig(**keys)
    client = ExporterClient(config.url, 20.0, exporter_access.create(config))
    keys["ca_file"].unlink()
    with pytest.raises(NoEvidence, match="/ca"):
        client.all()


def test_the_password_is_in_no_message(keys) -> None:
    assert "secret" not in repr(exporter_access.create(ExporterConfig(**keys)))
