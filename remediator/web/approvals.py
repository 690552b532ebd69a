"""The API of approvals: what a run that waits would do, with the token that says yes to it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from remediator.engine import approval
from remediator.errors import StorageError
from remediator.web.api import request_body, storage_error
from remediator.web.auth import requires
from remediator.web.who import asker

blueprint = Blueprint("approvals", __name__)
blueprint.register_error_handler(StorageError, storage_error)

_ID = "/api/v1/runs/<int(max=9007199254740991):run_id>"


@blueprint.get(f"{_ID}/approval")
@requires("operate")
def show(run_id: int) -> Any:
    """What a person is asked about, and the token that approves it."""
    deps = current_app.extensions["deps"]
    with deps.world.store.reading() as tx:
        run, asked = tx.runs.get(run_id), tx.approvals.get(run_id)
    if run is None:
        return {"error": f"there is no run {run_id}"}, 404
    if run.state != "awaiting_approval" or asked is None:
        return {"error": f"run {run_id} does not wait for approval: it is {run.state}"}, 409
    return {
        "run": run_id,
        "token": asked.token,
        "plan": run.plan,
        "means": dict(asked.means),
        "evidence": dict(asked.evidence),
        "expires_at": run.expires_at,
    }


@blueprint.post(f"{_ID}/approve")
@requires("operate")
def approve(run_id: int) -> Any:
    """Let a waiting run begin: exactly the plan that the token is of."""
    token = request_body().get("token", "")
    if not isinstance(token, str):
        return {"error": '"token" must be text'}, 400
    deps = current_app.extensions["deps"]
    refused = approval.approve(deps.world, deps.playbooks, run_id, token, asker())
    return _answer(run_id, "approved", refused)


@blueprint.post(f"{_ID}/deny")
@requires("operate")
def deny(run_id: int) -> Any:
    """End a waiting run."""
    deps = current_app.extensions["deps"]
    return _answer(run_id, "denied", approval.deny(deps.world, run_id, asker()))


def _answer(run_id: int, word: str, refused: approval.Refused | None) -> Any:
    current_app.extensions["deps"].nudge()
    if refused is None:
        return {"run": run_id, "answer": word}
    answer: dict[str, Any] = {"error": refused.sentence}
    if refused.reason:
        answer |= {"reason": refused.reason, "until": refused.until}
    return answer, 404 if refused.missing else 409
