"""For the tests of programs that use Dispytch: time that the test moves, and faults that it asks for."""

from dispytch.testing.clock import TestClock
from dispytch.testing.faults import Faults

__all__ = ["Faults", "TestClock"]
