"""The schema, as ordered migrations over `PRAGMA user_version`."""

from __future__ import annotations

import sqlite3

from remediator.errors import StorageError

_V1 = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    received_at REAL NOT NULL,
    digest TEXT NOT NULL,
    receiver TEXT NOT NULL,
    alerts INTEGER NOT NULL,
    truncated INTEGER NOT NULL
) STRICT;
CREATE INDEX deliveries_received ON deliveries (received_at);

-- One firing of one fingerprint. A repeat is a heartbeat of the open one.
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    number INTEGER NOT NULL,
    alertname TEXT NOT NULL,
    labels TEXT NOT NULL CHECK (json_valid(labels)),
    starts_at REAL NOT NULL,
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    heartbeats INTEGER NOT NULL DEFAULT 0,
    ended_at REAL,
    end_reason TEXT,
    evaluate_at REAL,
    last_reason TEXT,
    acted INTEGER NOT NULL DEFAULT 0,
    UNIQUE (fingerprint, number)
) STRICT;
CREATE UNIQUE INDEX episodes_open ON episodes (fingerprint) WHERE ended_at IS NULL;
CREATE INDEX episodes_due ON episodes (evaluate_at) WHERE evaluate_at IS NOT NULL;

CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    episode_id INTEGER REFERENCES episodes (id),
    playbook TEXT NOT NULL,
    weight INTEGER NOT NULL,
    destructive INTEGER NOT NULL,
    safe INTEGER NOT NULL,
    trigger TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_name TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '',
    plan TEXT NOT NULL CHECK (json_valid(plan)),
    rung INTEGER NOT NULL DEFAULT 0,
    cancel_reason TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    ended_at REAL,
    expires_at REAL,
    boot_id TEXT NOT NULL
) STRICT;
CREATE INDEX runs_recent ON runs (created_at);
CREATE INDEX runs_state ON runs (state);

-- A target is worked on by one run at a time: the primary key is the lock.
CREATE TABLE run_locks (
    target TEXT PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs (id)
) STRICT, WITHOUT ROWID;

CREATE TABLE steps (
    run_id INTEGER NOT NULL REFERENCES runs (id),
    seq INTEGER NOT NULL,
    rung INTEGER NOT NULL,
    action TEXT NOT NULL,
    gpu TEXT,
    service TEXT,
    state TEXT NOT NULL,
    intent TEXT NOT NULL CHECK (json_valid(intent)),
    result TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(result)),
    sentence TEXT NOT NULL DEFAULT '',
    started_at REAL NOT NULL,
    ended_at REAL,
    boot_id TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT, WITHOUT ROWID;

-- The undo of a GPU knob, written before the knob is turned.
CREATE TABLE leases (
    id INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL,
    knob TEXT NOT NULL,
    control TEXT NOT NULL,
    original INTEGER NOT NULL,
    value INTEGER NOT NULL,
    written TEXT NOT NULL CHECK (json_valid(written)),
    run_id INTEGER NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    undo_requested INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL,
    ended_at REAL,
    sentence TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX leases_open ON leases (uuid, knob) WHERE ended_at IS NULL;

-- What a service should be: up, or held down by whom and why.
CREATE TABLE services (
    name TEXT PRIMARY KEY,
    held_by TEXT,
    held_reason TEXT,
    held_since REAL,
    models TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(models)),
    process TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(process)),
    restarts INTEGER NOT NULL DEFAULT 0,
    out_of_memory INTEGER NOT NULL DEFAULT 0,
    footprint TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(footprint))
) STRICT, WITHOUT ROWID;

CREATE TABLE gpus (
    uuid TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    first_seen REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- What on-call sees: one row an open problem of one target.
CREATE TABLE incidents (
    id INTEGER PRIMARY KEY,
    episode_id INTEGER REFERENCES episodes (id),
    trigger TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_name TEXT NOT NULL,
    playbook TEXT NOT NULL,
    last_step TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,
    opened_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    closed_at REAL
) STRICT;
CREATE UNIQUE INDEX incidents_open ON incidents (trigger, target_kind, target_name)
    WHERE closed_at IS NULL;

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    record TEXT NOT NULL CHECK (json_valid(record)),
    prev_mac TEXT NOT NULL,
    mac TEXT NOT NULL,
    run INTEGER GENERATED ALWAYS AS (json_extract(record, '$.run')) VIRTUAL,
    time REAL GENERATED ALWAYS AS (json_extract(record, '$.time')) VIRTUAL
) STRICT;
CREATE INDEX audit_run ON audit (run);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are never changed'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit records are never deleted'); END;
"""

# When evidence said last that there was nothing to do: a suspicion is no older than that.
_V2 = """
ALTER TABLE episodes ADD COLUMN refuted_at REAL;
ALTER TABLE services ADD COLUMN out_of_memory_at REAL;
"""

# Records leave the database only for a segment file, which a row here names; and they are looked for
# by what they are about.
_V3 = """
CREATE TABLE audit_segments (
    first INTEGER PRIMARY KEY,
    last INTEGER NOT NULL CHECK (last >= first),
    mac TEXT NOT NULL,
    file TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    written_at REAL NOT NULL
) STRICT;
CREATE TRIGGER audit_segments_no_update BEFORE UPDATE ON audit_segments
BEGIN SELECT RAISE(ABORT, 'audit segments are never changed'); END;
CREATE TRIGGER audit_segments_no_delete BEFORE DELETE ON audit_segments
BEGIN SELECT RAISE(ABORT, 'audit segments are never forgotten'); END;
DROP TRIGGER audit_no_delete;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit_segments WHERE OLD.seq BETWEEN first AND last)
BEGIN SELECT RAISE(ABORT, 'audit records that are in no segment are never deleted'); END;

ALTER TABLE audit ADD COLUMN alertname TEXT
    GENERATED ALWAYS AS (json_extract(record, '$.alertname')) VIRTUAL;
ALTER TABLE audit ADD COLUMN gpu TEXT GENERATED ALWAYS AS (
    CASE WHEN json_extract(record, '$.target') LIKE 'gpu:%'
    THEN substr(json_extract(record, '$.target'), 5)
    ELSE json_extract(record, '$.data.labels.uuid') END) VIRTUAL;
ALTER TABLE audit ADD COLUMN service TEXT GENERATED ALWAYS AS (
    CASE WHEN json_extract(record, '$.target') LIKE 'service:%'
    THEN substr(json_extract(record, '$.target'), 9)
    ELSE coalesce(json_extract(record, '$.data.service'),
                  json_extract(record, '$.data.labels.llm_service')) END) VIRTUAL;
CREATE INDEX audit_gpu ON audit (gpu) WHERE gpu IS NOT NULL;
CREATE INDEX audit_service ON audit (service) WHERE service IS NOT NULL;
CREATE INDEX audit_alertname ON audit (alertname) WHERE alertname <> '';
CREATE INDEX audit_time ON audit (time);

-- What a person was asked about. The token that says yes is made of it, and kept nowhere.
CREATE TABLE approvals (
    run_id INTEGER PRIMARY KEY REFERENCES runs (id),
    nonce TEXT NOT NULL,
    means TEXT NOT NULL CHECK (json_valid(means)),
    evidence TEXT NOT NULL CHECK (json_valid(evidence)),
    used_at REAL,
    used_by TEXT
) STRICT;
"""

# When it began by the kernel's monotonic clock: within that boot no clock that is set changes it.
_V4 = """
ALTER TABLE runs ADD COLUMN created_monotonic REAL;
CREATE INDEX runs_booted ON runs (boot_id, created_monotonic);
ALTER TABLE leases ADD COLUMN created_monotonic REAL;
ALTER TABLE leases ADD COLUMN boot_id TEXT NOT NULL DEFAULT '';
"""

# What is forgotten is found without a look at all that is kept: deliveries wait meanwhile. Of an
# episode that is deleted SQLite asks itself whether a run or an incident is of it.
_V5 = """
CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX runs_episode ON runs (episode_id);
CREATE INDEX steps_of ON steps (action, service, started_at);
CREATE INDEX leases_ended ON leases (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX incidents_closed ON incidents (closed_at) WHERE closed_at IS NOT NULL;
CREATE INDEX incidents_episode ON incidents (episode_id);
CREATE INDEX episodes_ended ON episodes (ended_at) WHERE ended_at IS NOT NULL;
"""

# When it ended, in the same way: a cooldown counts from there, and a run may take half an hour.
_V6 = """
ALTER TABLE runs ADD COLUMN ended_monotonic REAL;
ALTER TABLE runs ADD COLUMN ended_boot_id TEXT NOT NULL DEFAULT '';
"""

MIGRATIONS = (_V1, _V2, _V3, _V4, _V5, _V6)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to the newest schema; each migration is one transaction.

    Raises:
        StorageError: the database was written by a newer version.
    """
    version = _version(connection)
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;"
        )


def check(connection: sqlite3.Connection) -> None:
    """Whether this version can read the database as it is, without changing it.

    Raises:
        StorageError: it was written by another version.
    """
    version = _version(connection)
    if version < len(MIGRATIONS):
        raise StorageError(
            f"the database has schema {version}, this version needs {len(MIGRATIONS)}: start "
            "gpu-remediator serve of this version, which brings it up to date"
        )


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StorageError(
            f"the database has schema {version}, this version knows {len(MIGRATIONS)}: "
            "run the version that wrote it, or newer"
        )
    return version
