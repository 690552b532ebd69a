"""What the drivers of servers with an API key and metrics have in common."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from remediator import http
from remediator.clock import SystemClock
from remediator.config.secrets import read_token
from remediator.errors import ConfigError, ServiceError

_SHORTEST_CALL = 0.05
_LONGEST_MESSAGE = 300


class Deadline:
    """What is left of the time for several calls, in seconds."""

    def __init__(self, seconds: float) -> None:
        self._clock = SystemClock()
        self._end = self._clock.monotonic() + seconds

    def seconds(self) -> float:
        """For the next call."""
        return max(_SHORTEST_CALL, self._end - self._clock.monotonic())


def api_key(path: Path | None) -> str | None:
    """The key in the file `path`, where there is one.

    Raises:
        ConfigError: the file cannot be used.
    """
    # The servers take keys of any length, so a short one is not for us to refuse.
    return None if path is None else read_token(path, min_length=1)


def check_address(url: str, option: str) -> None:
    """Refuse what is no address of a page; an empty one is none, and that is allowed.

    Raises:
        ConfigError: it has another scheme, no host, or a user in it, who would be in messages.
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    except ValueError:
        is_good = False
    if url and not is_good:
        raise ConfigError(
            f"options.{option} must be an http:// or https:// address, without a user in it"
        )


def key_hint(key: str | None, status: int) -> str:
    """What to do where the server did not take our key; empty for any other status."""
    if status not in (401, 403):
        return ""
    if key is None:
        return "; it asks for its API key: name its file in options.api_key_file"
    return "; the key in options.api_key_file is not its API key"


def count(requests: float | None) -> str:
    """A number of requests for a person."""
    return "?" if requests is None else f"{requests:.0f}"


def message(answer: http.Answer) -> str:
    """The server's own words, where it has some."""
    try:
        raw = answer.json()
    except ServiceError:
        return "no reason given"
    found = raw if isinstance(raw, dict) else {}
    error = found.get("error") or found.get("message") or found.get("detail")
    said = error.get("message") if isinstance(error, dict) else error
    return str(said or "no reason given")[:_LONGEST_MESSAGE]
