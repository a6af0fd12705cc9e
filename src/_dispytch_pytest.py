"""Fixtures for pytest, there as soon as Dispytch is installed.

A module of its own beside the package, since pytest imports it in every run, also of those who do not use it: nothing
of Dispytch is imported here before a test asks for a fixture. None of them needs an event loop or opens anything, so
they serve blocking tests and those of asyncio and trio alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dispytch.memory import MemoryBroker
    from dispytch.testing import BlockingRecordingEmitter, Faults, RecordingEmitter, TestClock


@pytest.fixture
def virtual_clock() -> TestClock:
    """The time of `memory_broker`: it stands still until the test advances it, or waits with `Running.idle`."""
    from dispytch.testing import TestClock

    return TestClock()


@pytest.fixture
def broker_faults() -> Faults:
    """What is to go wrong at `memory_broker`: nothing, until the test says so."""
    from dispytch.testing import Faults

    return Faults()


@pytest.fixture
def memory_broker(virtual_clock: TestClock, broker_faults: Faults) -> MemoryBroker:
    """An in-process broker of the test's own."""
    from dispytch.memory import MemoryBroker

    return MemoryBroker(virtual_clock, broker_faults)


@pytest.fixture
def recording_emitter(memory_broker: MemoryBroker) -> RecordingEmitter:
    """An emitter to `memory_broker` that notes what it emits; for event loops."""
    from dispytch.testing import RecordingEmitter

    return RecordingEmitter(broker=memory_broker)


@pytest.fixture
def blocking_recording_emitter(memory_broker: MemoryBroker) -> BlockingRecordingEmitter:
    """An emitter to `memory_broker` that notes what it emits; for blocking code."""
    from dispytch.testing import BlockingRecordingEmitter

    return BlockingRecordingEmitter(broker=memory_broker)
