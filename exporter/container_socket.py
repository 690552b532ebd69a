"""Whether somebody answers behind `--container.socket`, asked once when serving begins."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 1.0


def warn_if_unreachable(path: Path) -> None:
    """Say that containers will have no names; it is tried again when one is to be named."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE_SECONDS)
        try:
            probe.connect(str(path))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            _log.warning(
                "--container.socket: %s cannot be connected to (%s): until it can, a container is "
                "called by the beginning of its id; give the socket of Docker or Podman, and let this "
                "user connect to it",
                path,
                why,
            )
