"""For the tests of programs that use Dispytch, in any test framework.

`running` and `running_in_thread` run a dispatcher on an in-process broker; `RecordingEmitter` and
`BlockingRecordingEmitter` note what is emitted; `overriding` puts other providers in the place of the real ones;
`TestClock` is time that the test moves, `Faults` are what it has go wrong. With pytest there are fixtures too:
``memory_broker``, ``virtual_clock``, ``broker_faults``, ``recording_emitter``, ``blocking_recording_emitter``.

For the tests of transports: `TransportSuite`, the conformance suite. It alone needs pytest.
"""

from typing import TYPE_CHECKING, Any

from dispytch.errors import MissingExtraError
from dispytch.testing.clock import TestClock
from dispytch.testing.faults import Faults
from dispytch.testing.outcomes import Try
from dispytch.testing.overriding import overriding
from dispytch.testing.recording import BlockingRecordingEmitter, Emission, RecordingEmitter
from dispytch.testing.running import BlockingRunning, Running, running, running_in_thread

if TYPE_CHECKING:
    from dispytch.testing.conformance.suite import TransportSuite

__all__ = [
    "BlockingRecordingEmitter",
    "BlockingRunning",
    "Emission",
    "Faults",
    "RecordingEmitter",
    "Running",
    "TestClock",
    "TransportSuite",
    "Try",
    "overriding",
    "running",
    "running_in_thread",
]


def __getattr__(name: str) -> Any:
    if name != "TransportSuite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError as error:
        raise MissingExtraError(
            "TransportSuite is a suite of pytest, which is not installed: pip install pytest"
        ) from error
    pytest.register_assert_rewrite("dispytch.testing.conformance")  # so that a row that fails shows what it compared
    from dispytch.testing.conformance.suite import TransportSuite

    globals()[name] = TransportSuite
    return TransportSuite
