"""Everything that this package raises on purpose."""

from __future__ import annotations


class ServingError(Exception):
    """The root: a message for a person that says what to do."""


class ConfigError(ServingError):
    """An address, a web configuration or a file that it names is not usable."""


class ListenError(ServingError):
    """The address to serve on cannot be had."""
