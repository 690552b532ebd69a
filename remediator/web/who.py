"""Who asks: the user, the certificate, or the token's role; for the audit, never for a decision."""

from __future__ import annotations

from flask import request

from serving.auth import user_of
from serving.channel import CLIENT_NAMES

_LONGEST = 100


def asker() -> str:
    """Who sent this request, as it was let in."""
    header = request.headers.get("Authorization", "")
    if header:
        user = user_of(header)
        return f"user {user}"[:_LONGEST] if user else "the operate token"
    names = sorted(request.environ.get(CLIENT_NAMES, ()))
    return f"certificate {', '.join(names)}"[:_LONGEST] if names else "nobody"
