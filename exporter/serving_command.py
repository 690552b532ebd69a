"""`gpu-exporter serve`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter import __version__, config, container_socket
from exporter.heard_worker import Worker
from exporter.options import Flags
from exporter.service import Service
from exporter.web import release as web_release
from exporter.web.app import ExporterApp
from exporter.web.config_rows import config_rows
from exporter.worker import WorkerOptions
from serving import server
from serving.door import open_door
from serving.password import Password

if TYPE_CHECKING:
    from serving.live import LiveConfig

_log = logging.getLogger("exporter")


def run(flags: Flags, start_worker: Callable[[WorkerOptions], Worker]) -> int:
    """Serve until a signal comes, and return the exit code.

    Raises:
        ExporterError, ServingError: it cannot be done.
    """
    service = Service(
        config.load(flags.config_file), flags.service_options(), start_worker=start_worker
    )
    endpoint = None
    if flags.release_token_file is not None:
        token = web_release.read_token(flags.release_token_file)
        endpoint = web_release.ReleaseEndpoint(service.release, token)
    app = ExporterApp(
        service.store, service.page, flags.telemetry_path, service.read_host, endpoint
    )
    _log.info("gpu-exporter %s", __version__)
    if flags.container_socket is not None:
        container_socket.warn_if_unreachable(flags.container_socket)
    live = None if flags.web_config_file is None else _live(flags.web_config_file, service)
    # The release has a token of its own, in the same header.
    password = Password("gpu-exporter", frozenset({web_release.PATH}))
    try:
        server.serve(open_door(app, flags.listen_address, live, password), service.start)
    finally:
        service.stop()
    _log.info("stopped")
    return 0


def _live(path: Path, service: Service) -> LiveConfig:
    # Only here: TLS takes 1.5 MiB, and who serves plain HTTP does without it.
    from serving.live import LiveConfig  # noqa: PLC0415

    live = LiveConfig(path)
    service.page.add("web_config", partial(config_rows, live))
    return live
