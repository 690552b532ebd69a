"""One table of Xids: what the documents, the remediator and the rules say follows from it."""

from __future__ import annotations

import re

import pytest

from exporter import api, xids
from exporter.xid_ledger import XidCount
from exporter.xids import Remedy, Severity
from remediator.error_signatures import classify
from remediator.policy.device import DeviceEvidence, judge
from remediator.readings import XidSeen, _xids
from tests import xid_page

TABLE = tuple(xids.table().values())
# What the remediator makes of each action where the driver itself asks for nothing.
JUDGEMENTS = {
    Remedy.RESTART_APP: "restart_app",
    Remedy.RESET_GPU: "reset",
    Remedy.REBOOT_HOST: "lost",
    Remedy.RESTART_VM: "not_ours",
    Remedy.INSPECT: "not_ours",
    Remedy.CONTACT_SUPPORT: "not_ours",
    Remedy.CHECK_POWER_CABLES: "not_ours",
    Remedy.UPDATE_SOFTWARE: "not_ours",
    Remedy.FOLLOW_OTHER: "no_fault",
    Remedy.FOLLOW_RECOVERY_ACTION: "no_fault",
    Remedy.NONE: "no_fault",
}


def as_the_remediator_reads_it(xid: int) -> XidSeen:
    """Through the answer of the exporter, as it goes over the wire."""
    (seen,) = _xids([api._xid(XidCount(xid, 1, 5.0))]) or ()
    return seen


def test_the_page_is_made_from_the_table() -> None:
    text = xid_page.PAGE.read_text()
    assert xid_page.page(text) == text, "run python -m tests.xid_page"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row.xid))
def test_the_remediator_does_what_the_table_says(row) -> None:
    seen = as_the_remediator_reads_it(row.xid)
    assert (seen.action, seen.meaning, seen.contested) == (row.action, row.meaning, row.contested)
    expected = JUDGEMENTS[row.action]
    if row.contested and expected == "reset":
        expected = "not_ours"
    verdict = judge(DeviceEvidence(True, None, None, [seen]))
    assert verdict.judgement == expected
    assert str(row.xid) in verdict.sentence


def test_a_contested_code_hides_none_that_all_agree_on() -> None:
    contested = as_the_remediator_reads_it(62)
    verdict = judge(DeviceEvidence(True, None, None, [contested]))
    assert contested.contested in verdict.sentence
    both = [contested, as_the_remediator_reads_it(119)]
    assert judge(DeviceEvidence(True, None, None, both)).judgement == "reset"
    assert judge(DeviceEvidence(True, None, "reset", [contested])).judgement == "reset"


def test_the_codes_that_sources_see_otherwise_are_marked() -> None:
    contested = {row.xid for row in TABLE if row.contested}
    assert contested == {31, 32, 43, 62, 63, 64, 74, 121, 137}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: str(row.xid))
def test_a_servers_error_text_needs_hands_where_the_code_is_critical(row) -> None:
    for line in (
        f"NVRM: Xid (PCI:0000:17:00): {row.xid}, pid=1, name=vllm, x",
        f"NVRM: Xid (PCI:0000:17:00 GPU-I:05): {row.xid}, x",
        f"NVRM: Xid (0000:17:00): {row.xid}, x",
        f"Xid {row.xid}",
    ):
        found = classify(line)
        assert found.needs_hands == (row.severity is Severity.CRITICAL)
        if found.kind == "illegal_access":
            assert row.action is Remedy.RESTART_APP


def test_no_other_document_has_a_list_of_its_own() -> None:
    # A sentence may name some; a row of a table that gives a code a meaning would be a second one.
    for page in xid_page.PAGE.parent.rglob("*.md"):
        if page != xid_page.PAGE:
            assert not re.findall(
                r"^\| *\d+ *\|.*(?:reset_gpu|restart_app)", page.read_text(), re.MULTILINE
            )
