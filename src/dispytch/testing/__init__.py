"""For the tests of programs that use Dispytch: time that the test moves, and faults that it asks for.

For the tests of transports: `TransportSuite`, the conformance suite. It alone needs pytest.
"""

from typing import TYPE_CHECKING, Any

from dispytch.errors import MissingExtraError
from dispytch.testing.clock import TestClock
from dispytch.testing.faults import Faults

if TYPE_CHECKING:
    from dispytch.testing.conformance.suite import TransportSuite

__all__ = ["Faults", "TestClock", "TransportSuite"]


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
