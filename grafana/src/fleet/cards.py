"""Every card over time: heat and power, memory and work."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.fleet.lines import per_second, reading
from grafana.src.panel import ORANGE, RED, YELLOW, Query, Timeline, TimeSeries, limit_line, values
from grafana.src.selection import LEGEND, card, named

_LEVELS = (
    limit_line("^warning$", YELLOW),
    limit_line("^critical$", ORANGE),
    limit_line("^shutdown$", RED),
    limit_line("^max$", RED),
)


HEAT = Row(
    "Heat and power",
    (
        TimeSeries(
            title="Temperature",
            description=(
                "Of the core. Dashed: where the alerts begin, as the exporter is configured; "
                "where cards differ, the lowest of them."
            ),
            queries=(
                reading("gpu_temperature_celsius"),
                Query(
                    f"min by (level) ({card('gpu_temperature_threshold_celsius')})",
                    legend="{{level}}",
                ),
            ),
            unit="celsius",
            bottom=None,
            overrides=_LEVELS,
        ),
        TimeSeries(
            title="Power",
            description=(
                "Draw, and dashed the limit that is set now: a cap by the remediator is a "
                "step down."
            ),
            queries=(
                reading("gpu_power_watts"),
                reading("gpu_power_limit_watts", f"limit {LEGEND}"),
            ),
            unit="watt",
            overrides=(limit_line("^limit ", ORANGE),),
        ),
        TimeSeries(
            title="Memory temperature",
            description="Of cards that have a sensor for it.",
            queries=(reading("gpu_memory_temperature_celsius"),),
            unit="celsius",
            bottom=None,
            width=6,
        ),
        TimeSeries(
            title="Margin",
            description=(
                "Distance to the nearest temperature at which the card slows down, as it says itself;"
                " at 0 it does."
            ),
            queries=(reading("gpu_temperature_margin_celsius"),),
            unit="celsius",
            bottom=None,
            width=6,
        ),
        TimeSeries(
            title="Clocks",
            description="Graphics and memory clock. A hot or capped card lowers them.",
            queries=(
                Query(
                    named(card("gpu_clock_hertz", 'clock=~"graphics|memory"')),
                    legend=f"{{{{clock}}}} {LEGEND}",
                ),
            ),
            unit="hertz",
            width=6,
        ),
        TimeSeries(
            title="Fans",
            description="Share of full speed. Passively cooled cards have none of their own.",
            queries=(reading("gpu_fan_speed_ratio", f"{LEGEND} fan {{{{fan}}}}"),),
            unit="percentunit",
            top=1,
            width=6,
        ),
        Timeline(
            title="What holds the clocks down",
            description=(
                "Without idling, which holds them down too. hw_thermal_slowdown is the card "
                "protecting itself."
            ),
            queries=(
                Query(
                    named(card("gpu_clock_event_active", 'reason!="gpu_idle"') + " == 1"),
                    legend=f"{LEGEND} {{{{reason}}}}",
                ),
            ),
            unit="none",
            width=24,
            height=6,
            mappings=values({1: ("active", ORANGE)}),
        ),
    ),
)


WORK = Row(
    "Memory and work",
    (
        TimeSeries(
            title="Memory",
            description=(
                "In use. Dashed: where the alerts begin, as the exporter is configured; where"
                " cards differ, the lowest."
            ),
            queries=(
                reading("gpu_memory_used_bytes"),
                Query(f"min by (level) ({card('gpu_memory_threshold_bytes')})", legend="{{level}}"),
            ),
            unit="bytes",
            overrides=_LEVELS,
        ),
        TimeSeries(
            title="Utilisation",
            description=(
                "Mean share of time in which a kernel ran, exact over each interval. It does "
                "not say how much of the card was used. Dashed: saturated from here on."
            ),
            queries=(
                per_second("gpu_busy_seconds_total"),
                Query(f"min({card('gpu_saturation_threshold_ratio')})", legend="saturated"),
            ),
            unit="percentunit",
            top=1,
            overrides=(limit_line("^saturated$", YELLOW),),
        ),
        TimeSeries(
            title="Saturated without a break",
            description=(
                "Dashed: a hang is suspected, and GPUHang fires. A busy card gets there too."
            ),
            queries=(
                reading("gpu_saturated_duration_seconds"),
                Query(f"min({card('gpu_saturation_threshold_seconds')})", legend="suspected"),
            ),
            unit="s",
            width=12,
            overrides=(limit_line("^suspected$", YELLOW),),
        ),
        TimeSeries(
            title="Processes",
            description="How many processes use the card.",
            queries=(reading("gpu_processes"),),
            unit="none",
            decimals=0,
            width=12,
        ),
        TimeSeries(
            title="Memory by process",
            description="The ten largest of the chosen cards.",
            queries=(
                Query(
                    "topk(10, sum by (instance, gpu, process, pid)"
                    f" ({card('gpu_process_memory_used_bytes')}))",
                    legend="{{instance}} {{gpu}} {{process}} {{pid}}",
                ),
            ),
            unit="bytes",
            width=12,
        ),
        TimeSeries(
            title="Utilisation by process",
            description=(
                "The ten busiest of the chosen cards: the share of time in which kernels of the process"
                " ran. One that does not compute has none."
            ),
            queries=(
                Query(
                    "topk(10, sum by (instance, gpu, process, pid)"
                    f" ({card('gpu_process_utilization_ratio')}))",
                    legend="{{instance}} {{gpu}} {{process}} {{pid}}",
                ),
            ),
            unit="percentunit",
            width=12,
        ),
    ),
)
