"""Forgets rows that are over for long: the oldest first, so many at once, and nothing that is needed.

What came of them stays in the audit. Of each table the newest row is kept for ever: its number stands
in the audit, and must not be given to another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from remediator.store.rows import Run
from remediator.store.runs import Runs

_BEGUN = "coalesce(json_extract({0}.result, '$.reason'), '') <> 'impossible'"
_NEWEST = """
    NOT EXISTS (SELECT 1 FROM steps AS one WHERE one.run_id = runs.id AND one.action = '{action}'
        AND {told_by_one} AND NOT EXISTS (
            SELECT 1 FROM steps AS later WHERE later.action = '{action}' AND later.{of} IS one.{of}
            AND (later.{at}, later.run_id) > (one.{at}, one.run_id) AND {told_by_later}))
"""


def _is_not_newest(action: str, of: str, at: str, told: str) -> str:
    """That no step of the run is the newest of its kind; looks at its own steps and the newest."""
    said = {"told_by_one": told.format("one"), "told_by_later": told.format("later")}
    return _NEWEST.format(action=action, of=of, at=at, **said)


# The newest stop of each service and the newest resets of each card say what may be done next.
# `+id`: the few that ended so long ago are what is looked through, not all that there are.
_FORGETTABLE = f"""
    ended_at < ? AND +id < (SELECT max(id) FROM runs)
    AND id NOT IN (SELECT run_id FROM run_locks)
    AND id NOT IN (SELECT run_id FROM leases WHERE ended_at IS NULL)
    AND coalesce(episode_id, 0) NOT IN (SELECT id FROM episodes WHERE ended_at IS NULL)
    AND NOT EXISTS (SELECT 1 FROM incidents WHERE closed_at IS NULL AND trigger = runs.trigger
        AND target_kind = runs.target_kind AND target_name = runs.target_name)
    AND {_is_not_newest("stop_service", "service", "started_at", _BEGUN)}
    AND {_is_not_newest("reset_gpu", "gpu", "run_id", "{0}.state <> 'nothing' AND " + _BEGUN)}
    AND {_is_not_newest("reset_gpu", "gpu", "ended_at", "{0}.state = 'done'")}
    ORDER BY ended_at, id LIMIT ?
"""


class Retention:
    """What may be forgotten, within one transaction; times in Unix seconds."""

    def __init__(self, connection: sqlite3.Connection, runs: Runs) -> None:
        self._db = connection
        self._runs = runs

    def deliveries(self, before: float, most: int) -> int:
        """Forget deliveries that arrived before then; how many."""
        return self._delete("deliveries", "received_at < ?", before, most)

    def episodes(self, before: float, most: int) -> int:
        """Forget episodes that ended before then and of which no run and no incident is kept; how many."""
        return self._delete(
            "episodes",
            "ended_at < ? "
            "AND id NOT IN (SELECT episode_id FROM runs WHERE episode_id IS NOT NULL) "
            "AND id NOT IN (SELECT episode_id FROM incidents WHERE episode_id IS NOT NULL)",
            before,
            most,
        )

    def incidents(self, before: float, most: int) -> int:
        """Forget incidents that were closed before then; how many."""
        return self._delete("incidents", "closed_at < ?", before, most)

    def leases(self, before: float, most: int) -> tuple[int, ...]:
        """Forget leases that ended before then; their numbers."""
        found = self._db.execute(
            "SELECT id FROM leases WHERE ended_at < ? AND +id < (SELECT max(id) FROM leases) "
            "ORDER BY ended_at LIMIT ?",
            (before, most),
        ).fetchall()
        self._db.executemany("DELETE FROM leases WHERE id = ?", found)
        return tuple(row[0] for row in found)

    def forgettable(self, before: float, most: int) -> tuple[Run, ...]:
        """Runs that ended before then and that nothing open rests on, those that ended first.

        Not while its episode, an incident about the same, or a lease that it took is open.
        """
        return self._runs.where(_FORGETTABLE, (before, most))

    def runs(self, run_ids: Sequence[int]) -> None:
        """Forget these runs with their steps and approvals."""
        ids = [(number,) for number in run_ids]
        for table in ("approvals", "steps"):
            self._db.executemany(f"DELETE FROM {table} WHERE run_id = ?", ids)
        self._db.executemany("DELETE FROM runs WHERE id = ?", ids)

    def notes(self, prefix: str) -> None:
        """Forget the small durable values whose keys begin so."""
        self._db.execute(
            "DELETE FROM meta WHERE key >= ? AND key < ?", (prefix, prefix + "\U0010ffff")
        )

    def _delete(self, table: str, where: str, before: float, most: int) -> int:
        return self._db.execute(
            f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {where} "
            f"AND +id < (SELECT max(id) FROM {table}) LIMIT ?)",
            (before, most),
        ).rowcount
