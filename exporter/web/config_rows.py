"""Series about the exporter's own web configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from exporter.rows import Row

if TYPE_CHECKING:
    from serving.live import LiveConfig


def config_rows(live: LiveConfig) -> Iterator[Row]:
    """Yield what is in force; looks at the files."""
    state = live.state()
    yield "gpu_exporter_web_config_last_reload_successful", (), float(state.is_current)
    yield "gpu_exporter_web_config_last_reload_success_timestamp_seconds", (), state.since
    if state.certificate_expires is not None:
        yield "gpu_exporter_web_certificate_expiry_timestamp_seconds", (), state.certificate_expires
