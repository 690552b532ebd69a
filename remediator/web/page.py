"""The landing page: what this is, whether it may act, and where to look; it needs no token.

Who shows one that may read is told the names that operators gave, too.
"""

from __future__ import annotations

from html import escape

from flask import Blueprint, Response

from remediator import __version__
from remediator.engine.standing import Standing
from remediator.errors import StorageError
from remediator.web import status
from remediator.web.auth import may

blueprint = Blueprint("page", __name__)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
code { background: #eef1f4; padding: .1rem .3rem; border-radius: .2rem; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; vertical-align: top; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e8eb; background: #14171a; } code { background: #262b31; } a { color: #7db7ff; }
}
"""

_PAGE = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gpu-remediator</title>
<link rel="stylesheet" href="/style.css">
<h1>gpu-remediator</h1>
<p>Takes Alertmanager's alerts, reads the world again, acts within its gates, verifies, undoes.
Version {__version__}.</p>
<!-- standing -->
<table>
<tr><td><a href="/metrics">/metrics</a></td><td>for Prometheus</td></tr>
<tr><td><a href="/-/healthy">/-/healthy</a></td><td>is the worker alive</td></tr>
<tr><td><a href="/-/ready">/-/ready</a></td><td>can it store what it is told</td></tr>
<tr><td><code>POST /api/v1/alerts</code></td><td>the webhook, with the webhook token</td></tr>
<tr><td><code>/api/v1/runs</code>, <code>/api/v1/audit</code>, <code>/api/v1/services</code>,
<code>/api/v1/incidents</code>, <code>/api/v1/status</code></td><td>with the read token</td></tr>
<tr><td><code>/api/v1/runs/RUN/approval</code>, then <code>POST /api/v1/runs/RUN/approve</code> or
<code>deny</code></td><td>what waits for a person; with the operate token</td></tr>
<tr><td><code>POST /-/reload</code></td><td>read the configuration again, with the operate token</td></tr>
<tr><td><a href="/api/v1/openapi.json">/api/v1/openapi.json</a></td>
<td>all of it, as an OpenAPI document</td></tr>
</table>
<p>On this machine: <code>gpu-remediator check</code>, <code>runs</code>, <code>approve</code> and
<code>deny</code>, <code>audit tail</code>, <code>undo</code>, <code>pause</code>, <code>resume</code>.</p>
</html>
"""


@blueprint.get("/")
def landing() -> str:
    """The page. What keeps actions back is said, but no reason that somebody gave."""
    try:
        said = _standing(status.now(), named=may("read"))
    except StorageError:
        said = "<p>The store does not answer: nothing is begun.</p>"
    return _PAGE.replace("<!-- standing -->", said)


def _standing(now: Standing, *, named: bool) -> str:
    held = [
        word
        for word, holds in (
            ("the kill switch is pulled", now.kill_switch is not None),
            ("paused", now.paused is not None),
            ("the breaker is open", now.breaker is not None),
        )
        if holds
    ]
    if named:
        held += [f"the maintenance window {escape(one.name)} is open" for one in now.windows]
    elif now.windows:
        held.append("a maintenance window is open")
    return f"<p>Mode <b>{now.mode}</b>; {'; '.join(held) or 'nothing keeps it back'}.</p>"


@blueprint.get("/style.css")
def style() -> Response:
    """Its style, apart, so that no inline style has to be allowed."""
    return Response(_STYLE, mimetype="text/css")
