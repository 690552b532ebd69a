"""What was decided and done, and what of it is still to be undone."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.panel import (
    GREEN,
    RED,
    Query,
    Table,
    Timeline,
    TimeSeries,
    limit_line,
    values,
)
from grafana.src.selection import target

_DURATION = "remediator_run_duration_seconds_bucket"


def _per_interval(by: str, metric: str) -> str:
    return f"sum by ({by}) (increase({target(metric)}[$__rate_interval])) > 0"


RUNS = Row(
    "Decisions and runs",
    (
        TimeSeries(
            title="Runs",
            description="Runs that ended, by playbook and outcome.",
            queries=(
                Query(
                    _per_interval("playbook, outcome", "remediator_runs_total"),
                    legend="{{playbook}} {{outcome}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
        TimeSeries(
            title="Decisions",
            description=(
                "Also those not to act, by reason. The first of its kind since the remediator "
                "started shows only in the table below."
            ),
            queries=(
                Query(
                    _per_interval("decision, reason", "remediator_decisions_total"),
                    legend="{{decision}}: {{reason}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
        Table(
            title="Decisions since the start",
            description="Since the remediator started, by playbook, decision and reason.",
            labels={"playbook": "Playbook", "decision": "Decision", "reason": "Reason"},
            queries=(
                Query(
                    f"sum by (playbook, decision, reason) ({target('remediator_decisions_total')})",
                    column="Count",
                ),
            ),
            unit="none",
            width=12,
        ),
        TimeSeries(
            title="Actions",
            description="Steps that ended, by action and outcome; restore_power is the undo.",
            queries=(
                Query(
                    _per_interval("action, outcome", "remediator_actions_total"),
                    legend="{{action}} {{outcome}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
        TimeSeries(
            title="Time to recover",
            description=(
                "From the reservation of a run to its end, verification included: half and 95 of "
                "100 runs."
            ),
            queries=tuple(
                Query(
                    f"histogram_quantile({quantile}, sum by (le, playbook)"
                    f" (rate({target(_DURATION)}[$__rate_interval])))",
                    legend=f"{{{{playbook}}}} p{quantile * 100:.0f}",
                )
                for quantile in (0.5, 0.95)
            ),
            unit="s",
        ),
        TimeSeries(
            title="Alerts received",
            description="By name and status. Names that no playbook answers are other.",
            queries=(
                Query(
                    _per_interval("alertname, status", "remediator_alerts_received_total"),
                    legend="{{alertname}} {{status}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
    ),
)


UNDO = Row(
    "Undo and brakes",
    (
        TimeSeries(
            title="Changes to undo over time",
            description="Power limits that are changed, and those kept longer than they should be.",
            queries=(
                Query(target("remediator_undo_leases"), legend="{{instance}} changed"),
                Query(target("remediator_undo_leases_overdue"), legend="{{instance}} overdue"),
            ),
            unit="none",
            decimals=0,
            overrides=(limit_line(" overdue$", RED),),
        ),
        Timeline(
            title="What holds it back",
            description="Breaker, pause, kill switch, maintenance windows and storage over time.",
            queries=(
                Query(target("remediator_breaker_open"), legend="{{instance}} breaker {{scope}}"),
                Query(target("remediator_paused"), legend="{{instance}} paused"),
                Query(target("remediator_kill_switch"), legend="{{instance}} kill switch"),
                Query(
                    target("remediator_maintenance_window_open"),
                    legend="{{instance}} window {{window}}",
                ),
                Query(target("remediator_storage_failing"), legend="{{instance}} storage failing"),
            ),
            unit="none",
            mappings=values({0: ("no", GREEN), 1: ("yes", RED)}),
        ),
    ),
)
