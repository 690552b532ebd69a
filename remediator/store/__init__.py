"""The durable store: SQLite (WAL, synchronous=FULL); the only place with SQL."""

from remediator.store.audit import AuditRecord, Draft, Query
from remediator.store.rows import Episode, Incident, Lease, Run, Step
from remediator.store.store import Store
from remediator.store.transaction import Transaction

__all__ = [
    "AuditRecord",
    "Draft",
    "Episode",
    "Incident",
    "Lease",
    "Query",
    "Run",
    "Step",
    "Store",
    "Transaction",
]
