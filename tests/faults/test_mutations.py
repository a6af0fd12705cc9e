"""The rows find the mistakes that they are there for: each is made on purpose, in the worker process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.broker import Broker
from tests.faults.result import RESULT
from tests.faults.rig import Rig
from tests.faults.rows import ROWS, Row
from tests.faults.task import Mutation, Transport

_FOUND_BY: list[tuple[Mutation, str, Transport, str]] = [
    ("acknowledge-early", "killed", "redis", "lost"),
    ("commit-past-gap", "slow-head", "kafka", "committed, past the event that is not done"),
    ("forget-letters", "letters-refused", "redis", "unacknowledged"),
    ("no-drain", "drained", "redis", "did not finish"),
]
"""Each mistake, the row that must find it, where, and what that says then. Without it the row passes (`test_row`)."""


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("mutation", "row", "transport", "problem"),
    [
        pytest.param(mutation, _row(name), transport, problem, id=f"{mutation}-{name}-{transport}")
        for mutation, name, transport, problem in _FOUND_BY
    ],
)
def test_a_mistake_turns_its_row_red(
    mutation: Mutation,
    row: Row,
    transport: Transport,
    problem: str,
    broker_of: Callable[[Transport], Broker],
    faults_seed: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    rig = Rig(broker_of(transport), tmp_path, faults_seed, mutation=mutation, patience=4.0)
    try:
        result = request.node.stash[RESULT] = row.run(rig)
    finally:
        rig.close()
    result.note = f"{mutation}: " + "; ".join(found.partition(":")[0] for found in result.problems)
    assert any(problem in found for found in result.problems), (
        f"with DISPYTCH_FAULTS_SEED={faults_seed}, {row.name} does not find that workers {mutation}: {result.problems}"
    )
