"""schemathesis against the API, in this process: what fits the OpenAPI document, and what does not.

As many requests of each operation as SCHEMATHESIS_EXAMPLES says: two in the default run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from remediator.web.openapi import OPERATIONS, document
from tests.remediator.edge.support import SERVICE, TOKENS, InProcess, in_process

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "2"))
SCHEMA = schemathesis.openapi.from_dict(document())
CHECKS = (
    checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    with in_process(tmp_path_factory.mktemp("schemathesis"), services=[SERVICE]) as found:
        yield found


def cases() -> Iterator[tuple[str, GenerationMode]]:
    for name, operation in OPERATIONS.items():
        if name == "POST /webhook":
            # Another path of the same view.
            continue
        yield name, GenerationMode.POSITIVE
        # Where nobody is asked for anything, nothing can be wrong.
        if operation.role:
            yield name, GenerationMode.NEGATIVE


@pytest.mark.parametrize(("name", "mode"), list(cases()))
def test_nothing_that_is_sent_is_answered_otherwise_than_the_document_says(
    running, name: str, mode: GenerationMode
) -> None:
    method, _, path = name.partition(" ")
    operation = SCHEMA[path][method]
    headers = {"Authorization": f"Bearer {TOKENS[OPERATIONS[name].role or 'read']}"}

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def sends(case) -> None:
        case.call_and_validate(app=running.app, headers=headers, checks=CHECKS)

    sends()
