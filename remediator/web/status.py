"""`GET /api/v1/status`: what keeps actions back now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, current_app

from remediator.engine.standing import Standing, standing
from remediator.errors import StorageError
from remediator.web.auth import requires

blueprint = Blueprint("status", __name__)


def now() -> Standing:
    """What keeps actions back now.

    Raises:
        StorageError: the store does not answer.
    """
    world = current_app.extensions["deps"].world
    with world.store.reading() as tx:
        return standing(world.config, tx, world.clock.now())


@blueprint.get("/api/v1/status")
@requires("read")
def status() -> Any:
    """The mode, and each thing that keeps actions back."""
    try:
        return asdict(now())
    except StorageError as error:
        return {"error": str(error)}, 503
