"""The services, the way from an alert to the remediator, and the remediator itself."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.panel import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Query,
    Timeline,
    TimeSeries,
    limit_line,
    right_axis,
    values,
)
from grafana.src.selection import target

_HELD = f"2 * ({target('llm_service_held')} == 1)"
_LOADING = f"3 * clamp_max({target('llm_service_loading_seconds')} > 0, 1)"

SERVICES = Row(
    "LLM services",
    (
        Timeline(
            title="Services",
            description=(
                "Held: stopped on purpose, and not started again until it is safe or somebody"
                " says so. Loading: it answers, and says that it comes up."
            ),
            queries=(
                Query(
                    f"max by (instance, llm_service) (\n{_HELD}\nor\n{_LOADING}\nor\n"
                    f"{target('llm_service_up')}\n)",
                    legend="{{llm_service}}",
                ),
            ),
            unit="none",
            mappings=values(
                {0: ("down", RED), 1: ("up", GREEN), 2: ("held", ORANGE), 3: ("loading", BLUE)}
            ),
        ),
        TimeSeries(
            title="Restarts and losses of memory",
            description=(
                "Restarts by the remediator, and how often a service ran out of memory, in each"
                " interval."
            ),
            queries=(
                Query(
                    f"increase({target('llm_service_restarts_total')}[$__rate_interval])",
                    legend="{{llm_service}} restarted",
                ),
                Query(
                    f"increase({target('llm_service_out_of_memory_total')}[$__rate_interval])",
                    legend="{{llm_service}} out of memory",
                ),
            ),
            unit="none",
            bars=True,
            width=6,
        ),
        TimeSeries(
            title="Progress",
            description="Tokens or engine steps. Empty where the server does not say (Ollama).",
            queries=(
                Query(
                    f"rate({target('llm_service_progress_total')}[$__rate_interval])",
                    legend="{{llm_service}}",
                ),
            ),
            unit="cps",
            width=6,
        ),
        TimeSeries(
            title="Loading",
            description="For how long a server has said that it comes up. Dashed: its loading_limit.",
            queries=(
                Query(target("llm_service_loading_seconds"), legend="{{llm_service}}"),
                Query(target("llm_service_loading_limit_seconds"), legend="{{llm_service}} limit"),
            ),
            unit="s",
            width=6,
            overrides=(limit_line(" limit$", RED),),
        ),
        TimeSeries(
            title="Waits after a start",
            description=(
                "The warm-up that users were spared, the first answer after it, and how long the"
                " first users then waited for a token (vLLM and SGLang say so)."
            ),
            queries=(
                Query(target("llm_service_warmup_seconds"), legend="{{llm_service}} warm-up"),
                Query(
                    target("llm_service_first_answer_seconds"),
                    legend="{{llm_service}} first answer",
                ),
                Query(
                    target("llm_service_first_request_seconds"),
                    legend="{{llm_service}} first users",
                ),
            ),
            unit="s",
            width=6,
        ),
        TimeSeries(
            title="Failures in logs",
            description="What the services' own logs tell of, by kind, in each interval.",
            queries=(
                Query(
                    f"increase({target('llm_service_log_errors_total')}[$__rate_interval])",
                    legend="{{llm_service}} {{kind}}",
                ),
            ),
            unit="none",
            bars=True,
            width=6,
        ),
        Timeline(
            title="Less load, more asked",
            description=(
                "Degraded: started with less load. Overcommitted: its replicas ask for more of"
                " its cards than there is (Ray Serve)."
            ),
            queries=(
                Query(target("llm_service_degraded"), legend="{{llm_service}} degraded"),
                Query(
                    target("llm_service_gpus_overcommitted"), legend="{{llm_service}} overcommitted"
                ),
            ),
            unit="none",
            width=6,
            mappings=values({0: ("no", GREEN), 1: ("yes", ORANGE)}),
        ),
    ),
)


WAY = Row(
    "From the alert to the remediator",
    (
        TimeSeries(
            title="Age of the last delivery",
            description="Dashed: RemediatorNotReceiving fires above 120 s.",
            queries=(
                Query(
                    f"time() - {target('remediator_last_delivery_timestamp_seconds')}",
                    legend="{{instance}} any",
                ),
                Query(
                    f"time() - {target('remediator_watchdog_last_received_timestamp_seconds')}",
                    legend="{{instance}} Watchdog",
                ),
                Query("vector(120)", legend="too old"),
            ),
            unit="s",
            overrides=(limit_line("^too old$", RED),),
        ),
        TimeSeries(
            title="Notifications that failed",
            description=(
                "Alerts that Prometheus could not hand to Alertmanager, and webhook "
                "deliveries of Alertmanager that failed, on-call's too."
            ),
            queries=(
                Query(
                    "sum by (instance) (increase(prometheus_notifications_dropped_total[$__rate_interval]))",
                    legend="{{instance}} dropped",
                ),
                Query(
                    "sum by (instance, integration)"
                    ' (increase(alertmanager_notifications_failed_total{integration="webhook"}'
                    "[$__rate_interval]))",
                    legend="{{instance}} {{integration}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
        TimeSeries(
            title="Found by asking Alertmanager",
            description=(
                "Firing alerts that no delivery had brought, rounds in which none answered, and "
                "open episodes that none lists any more. 0 where nobody is asked (`alertmanager.urls`)."
            ),
            queries=(
                Query(
                    f"increase({target('remediator_reconcile_alerts_taken_total')}[$__rate_interval])",
                    legend="{{instance}} taken in",
                ),
                Query(
                    f"increase({target('remediator_reconcile_failures_total')}[$__rate_interval])",
                    legend="{{instance}} none answered",
                ),
                Query(
                    target("remediator_reconcile_unlisted_episodes"),
                    legend="{{instance}} not listed",
                ),
            ),
            unit="none",
        ),
        TimeSeries(
            title="Deliveries refused",
            description="By reason. `unauthorized`: Alertmanager has another token than the remediator.",
            queries=(
                Query(
                    "sum by (instance, reason)"
                    f" (increase({target('remediator_deliveries_refused_total')}[$__rate_interval]))",
                    legend="{{instance}} {{reason}}",
                ),
            ),
            unit="none",
            bars=True,
        ),
        TimeSeries(
            title="Queue over time",
            description="Episodes that are due for a decision.",
            queries=(Query(target("remediator_queue_depth"), legend="{{instance}}"),),
            unit="none",
            decimals=0,
            width=8,
        ),
        TimeSeries(
            title="Oldest in the queue",
            description="How long the oldest of them is due.",
            queries=(Query(target("remediator_queue_oldest_seconds"), legend="{{instance}}"),),
            unit="s",
            width=8,
        ),
        TimeSeries(
            title="Audit records written",
            description=(
                "Everything decided and done is one. None at all while alerts come in is wrong."
            ),
            queries=(
                Query(
                    f"increase({target('remediator_audit_records_total')}[$__rate_interval])",
                    legend="{{instance}}",
                ),
            ),
            unit="none",
            bars=True,
            width=8,
        ),
    ),
)


ITSELF = Row(
    "The remediator itself",
    (
        Timeline(
            title="Remediators",
            description="Whether Prometheus can scrape them.",
            queries=(Query(target("up"), legend="{{instance}}"),),
            unit="none",
            height=6,
            width=8,
            mappings=values({0: ("down", RED), 1: ("up", GREEN)}),
        ),
        TimeSeries(
            title="Internal errors",
            description="Bugs that were caught, by the work in which they happened. Empty: none.",
            queries=(
                Query(
                    f"sum by (instance, work)"
                    f" (increase({target('remediator_internal_errors_total')}[$__rate_interval]))",
                    legend="{{instance}} {{work}}",
                ),
            ),
            unit="none",
            bars=True,
            height=6,
            width=8,
        ),
        TimeSeries(
            title="Worker asleep",
            description="How long the worker has not looked for what is due. Above 30 s it is not healthy.",
            queries=(Query(target("remediator_worker_stalled_seconds"), legend="{{instance}}"),),
            unit="s",
            height=6,
            width=8,
        ),
        TimeSeries(
            title="Remediator CPU and memory",
            description=(
                "CPU as a share of one core on the left axis, resident memory on the right one."
            ),
            queries=(
                Query(
                    f"rate({target('process_cpu_seconds_total')}[$__rate_interval])",
                    legend="{{instance}} CPU",
                ),
                Query(target("process_resident_memory_bytes"), legend="{{instance}} memory"),
            ),
            unit="percentunit",
            height=6,
            width=8,
            overrides=(right_axis(" memory$", "bytes"),),
        ),
    ),
    collapsed=True,
)
