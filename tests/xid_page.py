"""The table of docs/xids.md, made from exporter/xids.json: `python -m tests.xid_page` writes it anew."""

from __future__ import annotations

from pathlib import Path

from exporter import xids

PAGE = Path(__file__).resolve().parents[1] / "docs" / "xids.md"
_HEADER = "|---|---|---|---|---|\n"


def page(text: str) -> str:
    """The page with its table made anew."""
    above, header, _ = text.partition(_HEADER)
    rows = (
        f"| {row.xid} | {row.meaning} | {row.severity} | `{row.action}` | {row.contested} |\n"
        for row in sorted(xids.table().values(), key=lambda one: one.xid)
    )
    return above + header + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
