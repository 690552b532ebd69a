"""What a card reports of its own faults: Xid errors, what the driver asks for, and memory that wears out."""

from __future__ import annotations

from grafana.src.dashboard import Row
from grafana.src.fleet.lines import reading
from grafana.src.panel import (
    GREEN,
    ORANGE,
    RED,
    Query,
    Table,
    Timeline,
    TimeSeries,
    cell,
    values,
)
from grafana.src.selection import LEGEND, card, named

_ASKED_FOR = card("gpu_recovery_action", 'action!="none"')


def _happened(metric: str) -> str:
    return named(f"increase({card(metric)}[$__rate_interval])") + "\n> 0"


WEAR = Row(
    "Faults and wear",
    (
        Timeline(
            title="What the driver asks for",
            description=(
                "Such as a reset, a reboot, or a drain before one. Empty: nothing, or a driver that"
                " does not say."
            ),
            queries=(Query(named(f"{_ASKED_FOR} == 1"), legend=f"{LEGEND} {{{{action}}}}"),),
            unit="none",
            mappings=values({1: ("asked for", RED)}),
        ),
        Table(
            title="Xid errors heard",
            description=(
                "When each was heard of last, by its code. exporter/xids.json says what each means"
                " and what to do; many are an application's."
            ),
            labels={"instance": "Instance", "gpu": "GPU", "name": "Card", "xid": "Xid"},
            queries=(
                Query(
                    f"1000 * ({named(card('gpu_xid_last_timestamp_seconds'))})",
                    column="Last heard",
                ),
            ),
            unit="none",
            width=12,
            overrides=(cell("Last heard", unit="dateTimeAsIso"),),
        ),
        TimeSeries(
            title="Xid errors",
            description=(
                "By code. Those that are not critical are drawn from the second on; the table shows"
                " all."
            ),
            queries=(Query(_happened("gpu_xid_errors_total"), legend=f"{LEGEND} Xid {{{{xid}}}}"),),
            unit="none",
            bars=True,
            width=8,
        ),
        TimeSeries(
            title="ECC errors",
            description="Corrected ones are the memory's daily work; uncorrected ones lost data.",
            queries=(
                Query(
                    _happened("gpu_ecc_errors_total"),
                    legend=f"{LEGEND} {{{{severity}}}} {{{{memory}}}}",
                ),
            ),
            unit="none",
            bars=True,
            width=8,
        ),
        TimeSeries(
            title="Memory repaired",
            description="Rows remapped and pages retired, by cause.",
            queries=(
                Query(_happened("gpu_remapped_rows_total"), legend=f"{LEGEND} rows {{{{cause}}}}"),
                Query(_happened("gpu_retired_pages_total"), legend=f"{LEGEND} pages {{{{cause}}}}"),
            ),
            unit="none",
            bars=True,
            width=8,
        ),
        Timeline(
            title="Row remapping",
            description=(
                "Pending: done with the next reset. Failed: the card has no spare row left for it"
                " and should be replaced."
            ),
            queries=(
                reading("gpu_row_remap_pending", f"{LEGEND} pending"),
                Query(f"2 * {named(card('gpu_row_remap_failure'))}", legend=f"{LEGEND} failed"),
            ),
            unit="none",
            width=24,
            height=5,
            mappings=values({0: ("no", GREEN), 1: ("pending", ORANGE), 2: ("failed", RED)}),
        ),
    ),
    collapsed=True,
)
