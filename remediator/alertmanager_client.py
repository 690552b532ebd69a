"""Asks one Alertmanager which alerts fire, by its API."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote, urlsplit

from remediator import exporter_access, http
from remediator.alertmanager import Listing, parse_groups
from remediator.config import AlertmanagerConfig
from remediator.config.secrets import read_token
from remediator.errors import NoEvidence, PayloadError, ServiceError

# Some ten thousand alerts.
_MAX_BYTES = 16 * 1024 * 1024
# The groups, not the alerts: only there does Alertmanager say what is muted at this time of day.
_PATH = "/api/v2/alerts/groups?filter=" + quote('remediate="true"', safe="")
_OK = 200


class Lister(Protocol):
    """One Alertmanager."""

    @property
    def name(self) -> str:
        """What it is called in metrics and in the log."""

    def firing(self) -> Listing:
        """Every firing alert with `remediate="true"`, the hidden ones too."""


class AlertmanagerClient:
    """`Lister` over HTTP."""

    def __init__(self, url: str, timeout: float, access: http.Access, token: str | None) -> None:
        self.name = urlsplit(url).netloc
        self._url = url.rstrip("/") + _PATH
        self._timeout = timeout
        self._access = access
        self._token = token

    def firing(self) -> Listing:
        """Every firing alert with `remediate="true"`, the hidden ones too.

        Raises:
            NoEvidence: it did not answer with that.
        """
        try:
            answer = http.call(
                "GET",
                self._url,
                timeout=self._timeout,
                token=self._token,
                access=self._access,
                max_bytes=_MAX_BYTES,
            )
            if answer.status != _OK:
                raise NoEvidence(f"it answered HTTP {answer.status}")
            return parse_groups(answer.body)
        except (ServiceError, PayloadError) as error:
            raise NoEvidence(str(error)) from None


def create(config: AlertmanagerConfig) -> tuple[AlertmanagerClient, ...]:
    """A client for each Alertmanager of the configuration; asks nothing.

    Raises:
        ConfigError: a file cannot be used, or one of two that belong together is missing.
    """
    urls = {f"alertmanager.urls[{i}]": url for i, url in enumerate(config.urls)}
    access = exporter_access.access_to(config, "alertmanager", urls)
    token = None if config.token_file is None else read_token(config.token_file, min_length=1)
    return tuple(AlertmanagerClient(url, config.timeout, access, token) for url in config.urls)
