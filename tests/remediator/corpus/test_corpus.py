"""The corpus through the real watchers, signals and verdicts: each trace is a promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from remediator.config import Config
from remediator.store import Store
from tests.remediator.corpus import cited, synthetic, traces
from tests.remediator.corpus.node_days import DAY, STEADY, Epoch, day
from tests.remediator.corpus.replay import Replay, Rules, configuration, rules
from tests.remediator.corpus.synthetic import SEED
from tests.remediator.corpus.traces import FILES, Trace
from tests.remediator.corpus.verdicts import wrong

CORPUS = traces.every()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Config, Rules]]:
    """A store that stays as it is, and what is shipped."""
    directory = tmp_path_factory.mktemp("state")
    store = Store(directory, b"k" * 64, Epoch())
    yield store, configuration(directory), rules()
    store.close()


@pytest.mark.parametrize("trace", CORPUS, ids=[trace.id for trace in CORPUS])
def test_a_trace_comes_to_what_it_has_to(trace: Trace, stage: tuple[Store, Config, Rules]) -> None:
    outcome = Replay(trace, *stage).run()
    assert wrong(trace, outcome) is None, trace.why


def test_the_corpus_is_large_enough_and_a_third_of_it_is_cited_and_held_out() -> None:
    assert len(CORPUS) >= 200
    assert len({trace.id for trace in CORPUS}) == len(CORPUS)
    held_out = [trace for trace in CORPUS if trace.held_out]
    assert 3 * len(held_out) >= len(CORPUS)
    assert all(trace.source and trace.why for trace in CORPUS)
    assert not any(trace.source.startswith("synthetic") for trace in held_out)
    kinds = Counter(trace.label for trace in CORPUS)
    assert min(kinds.values()) >= 6, kinds
    assert any(trace.cards > 1 for trace in held_out)
    assert any(not one["metrics"] for trace in held_out for one in trace.services)


def test_the_files_are_what_their_scripts_write() -> None:
    for path, script in zip(FILES, (synthetic, cited), strict=True):
        assert path.read_text() == "".join(trace.line() + "\n" for trace in script.traces())


@pytest.mark.parametrize("number", [0, 1])
def test_a_healthy_morning_restarts_nothing(
    number: int, stage: tuple[Store, Config, Rules]
) -> None:
    """The beginnings of what `node_days` plays in full."""
    whole = day(number, SEED)
    assert whole.seconds == pytest.approx(DAY)
    outcome = Replay(replace(whole, phases=whole.phases[:8]), *stage, STEADY).run()
    assert outcome.reads > 0
    assert outcome.restarted is None
