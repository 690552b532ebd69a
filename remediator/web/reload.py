"""`POST /-/reload`, as Prometheus has it, for who operates."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from remediator.errors import RemediatorError, StorageError
from remediator.web.auth import requires
from remediator.web.who import asker

blueprint = Blueprint("reload", __name__)


@blueprint.post("/-/reload")
@requires("operate")
def reload() -> Any:
    """Read the configuration again; the old one stays where the new one cannot be used."""
    try:
        changes = current_app.extensions["deps"].reload(asker())
    except StorageError as error:
        return {"error": str(error)}, 503
    except RemediatorError as error:
        return {"error": f"{error}; the configuration stays as it was"}, 409
    return {"reloaded": True, "changes": changes}
