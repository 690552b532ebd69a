"""`HOST:PORT`, as it is written in flags and files."""

from __future__ import annotations

from serving.errors import ConfigError


def parse_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT; an empty host means all interfaces.

    Raises:
        ConfigError: it is not HOST:PORT.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not separator or not number or int(port) > 65535:
        raise ConfigError(f"expected HOST:PORT such as 127.0.0.1:9940, not '{text}'")
    return host, int(port)
