"""`serving` in front of the application, with this program's errors."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from remediator.config import WebConfig
from remediator.errors import ConfigError
from serving.crowd import Capacity
from serving.door import open_door
from serving.errors import ServingError
from serving.live import LiveConfig
from serving.server import Server

_THREADS = 6


def listen(
    app: Flask,
    config: WebConfig,
    live: LiveConfig | None,
    on_too_large: Callable[[str, str], None],
) -> Server:
    """A server that listens; its `run()` answers.

    Args:
        app: what answers.
        config: where, and how long a body may be.
        live: the web configuration file. Its users have their passwords checked in `app`, which
            knows their roles.
        on_too_large: called with the path and the peer's address of each request whose is longer.

    Raises:
        ConfigError: the port is in use or the address is not ours.
    """
    capacity = Capacity(_THREADS, config.max_body_bytes, on_too_large)
    try:
        return open_door(app, config.listen_address, live, capacity=capacity)
    except ServingError as error:
        raise ConfigError(str(error)) from None
