"""Nothing that was confirmed is lost, whatever fails: the rows of ``python -m tests.faults``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.broker import Broker
from tests.faults.result import RESULT
from tests.faults.rig import Rig
from tests.faults.rows import ROWS, Row
from tests.faults.task import Transport

IS_LONG = os.environ.get("DISPYTCH_LONG", "") not in ("", "0")

pytestmark = pytest.mark.timeout(3600 if IS_LONG else 120)


@pytest.fixture
def rig(
    broker_of: Callable[[Transport], Broker], faults_seed: int, tmp_path: Path, transport: Transport
) -> Iterator[Rig]:
    rig = Rig(broker_of(transport), tmp_path, faults_seed, is_long=IS_LONG)
    yield rig
    rig.close()


@pytest.mark.parametrize(
    ("row", "transport"),
    [pytest.param(row, transport, id=f"{row.name}-{transport}") for row in ROWS for transport in row.transports],
)
def test_row(row: Row, rig: Rig, request: pytest.FixtureRequest) -> None:
    result = request.node.stash[RESULT] = row.run(rig)
    assert not result.problems, f"with DISPYTCH_FAULTS_SEED={rig.seed}: " + "\n".join(result.problems)
