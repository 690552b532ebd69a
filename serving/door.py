"""An application behind what a web configuration file says, listening."""

from __future__ import annotations

from wsgiref.types import WSGIApplication

from serving import channel as web_channel
from serving.channel import Patience
from serving.clock import Clock, SystemClock
from serving.crowd import Capacity
from serving.live import LiveConfig
from serving.password import Password
from serving.server import Server


def open_door(
    app: WSGIApplication,
    address: str,
    live: LiveConfig | None = None,
    password: Password | None = None,
    *,
    capacity: Capacity | None = None,
    clock: Clock | None = None,
    patience: Patience | None = None,
) -> Server:
    """Listen on `address`; without a configuration plain HTTP, open to everybody.

    Args:
        app: what answers.
        address: HOST:PORT.
        live: the web configuration file.
        password: where its users are asked for their passwords; None leaves that to `app`.
        capacity: how much is served at once.
        clock: for deadlines and the rate limit.
        patience: the deadlines.

    Raises:
        ConfigError: the address is not usable.
        ListenError: the address cannot be had.
    """
    clock = clock or SystemClock()
    capacity = capacity or Capacity()
    if live is None:
        channels = web_channel.factory(_plain, clock, patience)
        return Server(app, address, channels, "http", clock, capacity)
    # Only here: where no password is asked for, bcrypt need not be loaded.
    from serving.guard import Guard  # noqa: PLC0415

    guarded = Guard(app, lambda: live.current().config, clock, password)
    channels = web_channel.factory(lambda: live.current().tls, clock, patience)
    scheme = "http" if live.current().tls is None else "https"
    return Server(guarded, address, channels, scheme, clock, capacity)


def _plain() -> None:
    """No TLS."""
