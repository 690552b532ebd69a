"""What is open now, and what holds the remediator back."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.panel import (
    BLUE,
    GREEN,
    GREY,
    NONE_IS_GOOD,
    PLAIN,
    RED,
    YELLOW,
    Query,
    Stat,
    Steps,
    Table,
    Timeline,
    cell,
    values,
)
from grafana.src.selection import target

_TARGET = "{{trigger}} {{llm_service}}{{uuid}}"
_STATES = (
    (1, "refuted", "refuted", GREY),
    (2, "recovering", "recovering", BLUE),
    (3, "needs_human", "needs a person", RED),
)
_DELIVERY = Steps(GREEN, ((90, YELLOW), (120, RED)))
_DAY = 86400
_CERTIFICATE = Steps(RED, ((3 * _DAY, YELLOW), (14 * _DAY, GREEN)))


def _switch(title: str, description: str, expr: str, on: str, color: str) -> Stat:
    """A stat of something that is 0 or 1, worst over the chosen remediators."""
    return Stat(
        title=title,
        description=description,
        queries=(Query(f"max({expr})"),),
        unit="none",
        mappings=values({0: ("no", GREEN), 1: (on, color)}),
        steps=PLAIN,
    )


def _incidents(state: str, title: str, description: str, steps: Steps) -> Stat:
    found = target("remediator_incident_state", f'state="{state}"')
    # Incidents come from the store; where it cannot be read nobody knows whether there are any. So
    # the 0 comes from a series of the same store.
    zero = f"max(0 * {target('remediator_queue_depth')})"
    return Stat(
        title=title,
        description=description,
        queries=(Query(f"count({found} == 1) or {zero}"),),
        unit="none",
        steps=steps,
    )


def _age(title: str, description: str, metric: str) -> Stat:
    return Stat(
        title=title,
        description=description,
        queries=(Query(f"time() - min({target(metric)})"),),
        unit="s",
        decimals=0,
        steps=_DELIVERY,
    )


def _count(title: str, description: str, metric: str, steps: Steps) -> Stat:
    return Stat(
        title=title,
        description=description,
        queries=(Query(f"sum({target(metric)})"),),
        unit="none",
        steps=steps,
    )


# What somebody has set on the machine itself, and what the remediator finds of its surroundings.
BRAKES = (
    _switch(
        "Kill switch",
        "Its file exists, or cannot be looked at: nothing new is done, not even a stop for heat.",
        target("remediator_kill_switch"),
        "pulled",
        RED,
    ),
    _switch(
        "Maintenance window",
        "One is open. What waits for its end is in the decisions below.",
        f"{target('remediator_maintenance_window_open')} or 0 * {target('remediator_paused')}",
        "open",
        YELLOW,
    ),
    _switch(
        "Configuration refused",
        "The file was read again and not taken in: the one before is in force.",
        f"1 - {target('remediator_config_last_reload_successful')}",
        "refused",
        RED,
    ),
    _switch(
        "Audit anchor",
        "Failing: the end of the audit cannot be written down outside the database.",
        target("remediator_audit_anchor_failing"),
        "failing",
        RED,
    ),
    Stat(
        title="Alertmanagers that answer",
        description="Of those that are asked what fires; empty where `alertmanager.urls` is.",
        queries=(Query(f"min({target('remediator_reconcile_alertmanager_up')})"),),
        unit="none",
        mappings=values({0: ("not all", RED), 1: ("all", GREEN)}),
        steps=PLAIN,
    ),
    Stat(
        title="Certificate ends in",
        description="The first of the remediators' own; empty without TLS.",
        queries=(
            Query(f"min({target('remediator_web_certificate_expiry_timestamp_seconds')}) - time()"),
        ),
        unit="s",
        decimals=0,
        steps=_CERTIFICATE,
    ),
)

ROW = Row(
    "Now",
    (
        _incidents(
            "needs_human",
            "Need a person",
            "The remediator gave up on these; each fires RemediationFailed.",
            NONE_IS_GOOD,
        ),
        _incidents(
            "recovering",
            "Being recovered",
            "Incidents that a run is working on, or whose success is being watched.",
            PLAIN,
        ),
        _incidents(
            "refuted",
            "Refuted",
            "Alerts that fresh evidence contradicts, such as a busy card that looked hung.",
            PLAIN,
        ),
        _switch(
            "Breaker",
            "Open: too much was done or too much of it failed; no destructive action until `resume`.",
            target("remediator_breaker_open"),
            "open",
            RED,
        ),
        _switch(
            "Paused", "By an operator. Undo goes on.", target("remediator_paused"), "paused", YELLOW
        ),
        _switch(
            "Storage",
            "Failing: no alert is taken and no new action begun. Undoing goes on.",
            target("remediator_storage_failing"),
            "failing",
            RED,
        ),
        _age(
            "Last delivery",
            "Since Alertmanager last delivered anything; the Watchdog comes every minute.",
            "remediator_last_delivery_timestamp_seconds",
        ),
        _age(
            "Last Watchdog",
            "Since the Watchdog alert last came the whole way.",
            "remediator_watchdog_last_received_timestamp_seconds",
        ),
        _count("Queue", "Episodes that are due for a decision.", "remediator_queue_depth", PLAIN),
        _count(
            "Changes to undo",
            "Power limits that are changed now and will be given back.",
            "remediator_undo_leases",
            PLAIN,
        ),
        _count(
            "Undo overdue",
            "Of these, those kept too long: the card is hot, cannot be read, or refuses.",
            "remediator_undo_leases_overdue",
            NONE_IS_GOOD,
        ),
        _count(
            "Audit records",
            "In the audit chain. It only grows.",
            "remediator_audit_records_total",
            PLAIN,
        ),
        *BRAKES,
        Table(
            title="Open incidents",
            description=(
                "One row an incident, with what the remediator says of it. `gpu-remediator "
                "runs` tells the story."
            ),
            labels={
                "state": "State",
                "trigger": "Alert",
                "uuid": "Card",
                "llm_service": "Service",
                "playbook": "Playbook",
                "last_step": "Last step",
                "reason": "Reason",
                "instance": "Remediator",
            },
            queries=(Query(f"{target('remediator_incident_state')} == 1"),),
            unit="none",
            width=12,
            overrides=(
                cell(
                    "State",
                    mappings=values({state: (text, color) for _, state, text, color in _STATES}),
                ),
            ),
        ),
        Timeline(
            title="Incidents",
            description="The state of each incident over time.",
            queries=(
                Query(
                    "max by (instance, trigger, uuid, llm_service) (\n"
                    + "\nor\n".join(
                        f"{value} * " + target("remediator_incident_state", f'state="{state}"')
                        for value, state, _, _ in _STATES
                    )
                    + "\n)",
                    legend=_TARGET,
                ),
            ),
            unit="none",
            mappings=values({value: (text, color) for value, _, text, color in _STATES}),
        ),
    ),
)
