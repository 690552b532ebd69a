"""An application behind what a web configuration file says, listening."""

from __future__ import annotations

from typing import TYPE_CHECKING
from wsgiref.types import WSGIApplication

from serving.channel import Patience, plain
from serving.clock import Clock, SystemClock
from serving.crowd import Capacity
from serving.password import Password
from serving.server import Server

if TYPE_CHECKING:
    from serving.live import LiveConfig


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
        return Server(app, address, plain(clock, patience), "http", clock, capacity)
    # Only here: who asks for no password and serves plain HTTP need load neither bcrypt nor TLS.
    from serving import tls_channel  # noqa: PLC0415
    from serving.guard import Guard  # noqa: PLC0415

    guarded = Guard(app, lambda: live.current().config, clock, password)
    channels = tls_channel.factory(lambda: live.current().tls, clock, patience)
    scheme = "http" if live.current().tls is None else "https"
    return Server(guarded, address, channels, scheme, clock, capacity)
