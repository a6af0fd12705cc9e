"""What holds in a short time, of what ``python -m tests.faults --soak`` and ``--backlog`` show in a long one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.broker import Broker
from tests.faults.result import RESULT
from tests.faults.rig import HAS_PROC, Rig
from tests.faults.soak import backlog, soak
from tests.faults.task import Transport

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not HAS_PROC, reason="the system does not tell what a process holds"),
]


@pytest.fixture
def rig(broker_of: Callable[[Transport], Broker], faults_seed: int, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(broker_of("redis"), tmp_path, faults_seed)
    yield rig
    rig.close()


def test_random_faults(rig: Rig, request: pytest.FixtureRequest) -> None:
    result = request.node.stash[RESULT] = soak(rig, 5.0)
    assert not result.problems, f"with DISPYTCH_FAULTS_SEED={rig.seed}: {result.problems}"


def test_a_long_queue(rig: Rig, request: pytest.FixtureRequest) -> None:
    result = request.node.stash[RESULT] = backlog(rig, 5000, 3.0)
    assert not result.problems, result.problems
