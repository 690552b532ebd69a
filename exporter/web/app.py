"""The HTTP side: a plain WSGI application over the store and the registry."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias
from urllib.parse import parse_qs, unquote
from wsgiref.types import StartResponse, WSGIEnvironment

from exporter import __version__, api
from exporter.gpu_state import HISTORY_SECONDS, HistoryPoint
from exporter.host import HostReading
from exporter.snapshot import Snapshot
from exporter.web import release as release_endpoint
from serving import responses
from serving.answer import preferred_format, send
from serving.responses import Response

Endpoint: TypeAlias = Callable[[WSGIEnvironment], Response]


class Source(Protocol):
    """What is served: the store."""

    def snapshot(self) -> Snapshot:
        """Return the picture of this moment."""
        ...

    def history(self, uuid: str, window: float) -> list[HistoryPoint] | None:
        """Return the last samples of a GPU."""
        ...


class MetricsPage(Protocol):
    """What `/metrics` serves."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return body and content type."""
        ...


class ExporterApp:
    """Every endpoint. No request that reads waits for a driver; a release waits for the worker."""

    def __init__(
        self,
        source: Source,
        page: MetricsPage,
        telemetry_path: str = "/metrics",
        read_host: Callable[[], HostReading] | None = None,
        release: Endpoint | None = None,
    ) -> None:
        """Serve; without `read_host` there is no host, without `release` nobody may ask for it."""
        self._source = source
        self._page = page
        self._telemetry_path = telemetry_path
        self._read_host = read_host
        self._routes: dict[str, Endpoint] = {
            "/": self._landing,
            "/-/healthy": lambda _: Response(200, b"healthy\n"),
            "/-/ready": self._ready,
            "/api/gpu": self._first_gpu,
            "/api/gpus": self._all_gpus,
            "/api/host": self._host,
            release_endpoint.PATH: release or _no_release,
            telemetry_path: self._metrics,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        return send(self._answer(environ), environ, start_response)

    def _answer(self, environ: WSGIEnvironment) -> Response:
        path = environ.get("PATH_INFO") or "/"
        route = self._routes.get(path)
        if route is None and path.startswith("/api/gpu/"):
            route = self._named_gpu
        if route is None:
            return Response(404, b"not found; / lists what there is\n")
        if path == release_endpoint.PATH:
            return route(environ)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return responses.not_allowed("GET, HEAD")
        return route(environ)

    def _metrics(self, environ: WSGIEnvironment) -> Response:
        accept = preferred_format(environ.get("HTTP_ACCEPT", ""))
        body, content_type = self._page.render(accept)
        return Response(200, body, content_type, {"Vary": "Accept"})

    def _ready(self, _: WSGIEnvironment) -> Response:
        reason = self._source.snapshot().not_ready
        return (
            Response(503, f"not ready: {reason}\n".encode())
            if reason
            else Response(200, b"ready\n")
        )

    def _first_gpu(self, _: WSGIEnvironment) -> Response:
        snapshot = self._source.snapshot()
        if not snapshot.gpus:
            return responses.as_json(503, api.UNAVAILABLE)
        return responses.as_json(200, api.one_gpu(snapshot.gpus[0], snapshot))

    def _all_gpus(self, _: WSGIEnvironment) -> Response:
        snapshot = self._source.snapshot()
        return responses.as_json(200 if snapshot.gpus else 503, api.all_gpus(snapshot))

    def _host(self, _: WSGIEnvironment) -> Response:
        body = api.host(None if self._read_host is None else self._read_host())
        return responses.as_json(200 if body["available"] else 503, body)

    def _named_gpu(self, environ: WSGIEnvironment) -> Response:
        key, _, rest = unquote(environ["PATH_INFO"].removeprefix("/api/gpu/")).partition("/")
        snapshot = self._source.snapshot()
        if not snapshot.gpus:
            return responses.as_json(503, api.UNAVAILABLE)
        view = api.find(snapshot, key)
        if view is None:
            return responses.error(404, f"no GPU '{key}'; /api/gpus lists them")
        if not rest:
            return responses.as_json(200, api.one_gpu(view, snapshot))
        if rest == "history":
            return self._history(view.info.uuid, environ.get("QUERY_STRING", ""))
        return responses.error(404, f"no '{rest}' of a GPU; there is history")

    def _history(self, uuid: str, query: str) -> Response:
        text = parse_qs(query).get("window", ["60"])[-1]
        try:
            window = float(text)
        except ValueError:
            window = -1.0
        if not 0 < window <= HISTORY_SECONDS:
            return responses.error(
                400, f"window: seconds above 0 and up to {HISTORY_SECONDS:.0f}, not '{text}'"
            )
        return responses.as_json(200, api.history(uuid, self._source.history(uuid, window) or []))

    def _landing(self, _: WSGIEnvironment) -> Response:
        rows = "".join(
            f'<tr><td><a href="{html.escape(path)}">{html.escape(path)}</a></td><td>{text}</td></tr>'
            for path, text in (
                (self._telemetry_path, "for Prometheus"),
                ("/api/gpus", "every GPU, as JSON; /api/gpu is the first one"),
                ("/api/host", "memory of this machine, and processes killed for it"),
                ("/-/healthy", "is this process alive"),
                ("/-/ready", "has it read the GPUs yet"),
            )
        )
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>gpu-exporter</title><style>{_STYLE}</style></head><body>"
            "<h1>gpu-exporter</h1><p>Reads this machine's GPUs; it only reads. "
            f"Version {html.escape(__version__)}.</p><table>{rows}</table>"
            "<p>On this machine: <code>gpu-exporter check</code>, <code>doctor</code>, "
            "<code>dump</code>.</p></body></html>\n"
        )
        return Response(200, page.encode(), "text/html; charset=utf-8")


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
code { background: #eef1f4; padding: .1rem .3rem; border-radius: .2rem; }
td { padding: .2rem 1rem .2rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e8eb; background: #14171a; } code { background: #262b31; } a { color: #7db7ff; }
}
"""


def _no_release(_: WSGIEnvironment) -> Response:
    return responses.error(404, "the driver is never let go without --web.release-token-file")
