"""How a card is tied to the rest of the machine, and how it is divided: PCIe, NVLink, MIG."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.panel import ORANGE, Query, TimeSeries, limit_line
from grafana.src.selection import LEGEND, card, named


def _rate(metric: str) -> str:
    return named(f"rate({card(metric)}[$__rate_interval])")


LINKS = Row(
    "Links and divided cards",
    (
        TimeSeries(
            title="PCIe lanes",
            description=(
                "Lanes of the link now, and dashed those that card and slot both have: fewer is a card"
                " that is not well seated, or a riser that wears out."
            ),
            queries=(
                Query(named(card("gpu_pcie_link_width")), legend=LEGEND),
                Query(named(card("gpu_pcie_link_width_max")), legend=f"most {LEGEND}"),
            ),
            unit="none",
            decimals=0,
            width=8,
            overrides=(limit_line("^most ", ORANGE),),
        ),
        TimeSeries(
            title="PCIe errors",
            description=(
                "Packets that were sent again, and errors by kind, a second. A steady few are a bad"
                " contact."
            ),
            queries=(
                Query(_rate("gpu_pcie_replays_total"), legend=f"{LEGEND} replays"),
                Query(_rate("gpu_pcie_errors_total"), legend=f"{LEGEND} {{{{kind}}}}"),
            ),
            unit="cps",
            width=8,
        ),
        TimeSeries(
            title="NVLink errors",
            description="By link and kind, a second. A link that is down has no counters.",
            queries=(
                Query(
                    _rate("gpu_nvlink_errors_total") + "\n> 0",
                    legend=f"{LEGEND} link {{{{link}}}} {{{{kind}}}}",
                ),
            ),
            unit="cps",
            width=8,
        ),
        TimeSeries(
            title="NVLink traffic",
            description="Data over all links of a card, by direction.",
            queries=(Query(_rate("gpu_nvlink_bytes_total"), legend=f"{LEGEND} {{{{direction}}}}"),),
            unit="Bps",
            width=8,
        ),
        TimeSeries(
            title="Memory of MIG devices",
            description=(
                "In use, as a share of what the device has. Compute instances of one GPU instance show"
                " the same memory."
            ),
            queries=(
                Query(
                    f"{card('gpu_mig_memory_used_bytes')} / {card('gpu_mig_memory_total_bytes')}\n"
                    "* on (job, instance, uuid, mig_uuid) group_left (profile, gpu_instance)\n"
                    f"{card('gpu_mig_info')}",
                    legend="{{instance}} {{gpu}} {{profile}} {{gpu_instance}}",
                ),
            ),
            unit="percentunit",
            top=1,
            width=16,
        ),
    ),
    collapsed=True,
)
