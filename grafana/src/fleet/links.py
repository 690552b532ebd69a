"""How a card is tied to the rest of the machine, and how it is divided: PCIe, NVLink, MIG."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.fleet.lines import per_second, reading
from grafana.src.panel import ORANGE, Query, TimeSeries, limit_line
from grafana.src.selection import LEGEND, card

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
                reading("gpu_pcie_link_width"),
                reading("gpu_pcie_link_width_max", f"most {LEGEND}"),
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
                per_second("gpu_pcie_replays_total", f"{LEGEND} replays"),
                per_second("gpu_pcie_errors_total", f"{LEGEND} {{{{kind}}}}"),
            ),
            unit="cps",
            width=8,
        ),
        TimeSeries(
            title="NVLink errors",
            description="By link and kind, a second. A link that is down has no counters.",
            queries=(
                per_second(
                    "gpu_nvlink_errors_total", f"{LEGEND} link {{{{link}}}} {{{{kind}}}}", above="0"
                ),
            ),
            unit="cps",
            width=8,
        ),
        TimeSeries(
            title="NVLink traffic",
            description="Data over all links of a card, by direction.",
            queries=(per_second("gpu_nvlink_bytes_total", f"{LEGEND} {{{{direction}}}}"),),
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
