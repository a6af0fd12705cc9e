"""The fixtures that pytest has as soon as Dispytch is installed; in runs of pytest of their own."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

pytest_plugins = "pytester"

APP = """
from typing import Annotated

from dispytch import Dependency, Event, EventBase, EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer


class Ordered(EventBase):
    __topic__ = "orders"
    n: int


class Shipped(EventBase):
    __topic__ = "shipments"
    n: int


async def get_emitter() -> EventEmitter:
    raise AssertionError("the real one")


dispatcher = EventDispatcher(MemoryConsumer(MemoryBroker()))


@dispatcher.handler(Ordered)
async def ship(event: Event[Ordered], emitter: Annotated[EventEmitter, Dependency(get_emitter)]) -> None:
    await emitter.emit(Shipped(n=event.body.n))
"""


@pytest.fixture(autouse=True)
def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the options of this run, and with warnings as errors."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(app=APP)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")


def test_it_is_installed_with_the_package() -> None:
    found = [entry.value for entry in entry_points(group="pytest11") if entry.name == "dispytch"]
    assert found == ["_dispytch_pytest"], "install the project again: its entry points have changed"


def test_who_does_not_use_it_does_not_import_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing(request):
            assert request.config.pluginmanager.has_plugin("dispytch")
            assert [name for name in sys.modules if "dispytch" in name] == ["_dispytch_pytest"]
            assert "pydantic" not in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pytester.runpytest_subprocess("-p", "no:dispytch").assert_outcomes(failed=1)


def test_fixtures_serve_every_loop_and_none(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        from app import Ordered, Shipped, dispatcher, get_emitter
        from dispytch.testing import running, running_in_thread


        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param


        @pytest.fixture
        async def app(anyio_backend, memory_broker, recording_emitter):
            overrides = {get_emitter: lambda: recording_emitter}
            async with running(dispatcher, memory_broker, dependency_overrides=overrides) as app:
                yield app


        @pytest.mark.anyio
        async def test_in_a_fixture(app, recording_emitter, virtual_clock, broker_faults):
            assert app.broker.clock is virtual_clock
            broker_faults.fail("settle")
            await app.emit(Ordered(n=1))
            await app.idle()
            recording_emitter.assert_emitted(Shipped, n=1, times=1)
            assert broker_faults.taken["settle"] == 1


        @pytest.mark.anyio
        async def test_in_a_test(memory_broker, recording_emitter):
            overrides = {get_emitter: lambda: recording_emitter}
            async with running(dispatcher, memory_broker, dependency_overrides=overrides) as app:
                await app.emit(Ordered(n=1))
            recording_emitter.assert_emitted(Shipped, n=1, times=1)


        @pytest.mark.parametrize("backend", ["asyncio", "trio"])
        def test_without_a_loop(backend, memory_broker, recording_emitter, blocking_recording_emitter):
            overrides = {get_emitter: lambda: recording_emitter}
            with running_in_thread(
                dispatcher, memory_broker, dependency_overrides=overrides, backend=backend
            ) as app:
                blocking_recording_emitter.emit(Ordered(n=1))
                app.idle()
            recording_emitter.assert_emitted(Shipped, n=1, times=1)


        def test_each_test_has_its_own(memory_broker, recording_emitter, virtual_clock):
            assert recording_emitter.emissions == memory_broker.records("orders") == []
            before = virtual_clock.time()
            virtual_clock.advance(60)
            assert virtual_clock.time() == before + 60
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=7)


def test_failures_show_what_was_emitted_and_what_a_handler_raised(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        from app import Ordered, Shipped, dispatcher, get_emitter
        from dispytch.testing import running_in_thread


        def test_emitted(blocking_recording_emitter):
            blocking_recording_emitter.emit(Shipped(n=1))
            blocking_recording_emitter.assert_not_emitted(Shipped)


        def test_handled():
            with running_in_thread(dispatcher) as app:
                app.emit(Ordered(n=1))
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "> *blocking_recording_emitter.assert_not_emitted(Shipped)",
            "E *AssertionError: Shipped was emitted once. What was emitted (1):",
            "E *Shipped(n=1) to shipments",
            "test_*.py:*: AssertionError",  # and not a place in the library
            "E *AssertionError: the real one",
            "E *app.ship gave up the event Ordered (*) from orders.",
        ]
    )


def test_fixtures_of_one_s_own_come_first(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        from dispytch.memory import MemoryBroker


        @pytest.fixture
        def memory_broker():
            return MemoryBroker.named("mine")


        def test_mine(memory_broker, recording_emitter):
            assert recording_emitter.producer.broker is memory_broker is MemoryBroker.named("mine")
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_pytest_tells_of_them(pytester: pytest.Pytester) -> None:
    lines = pytester.runpytest_subprocess("--fixtures").outlines
    for name in ("memory_broker", "virtual_clock", "broker_faults", "recording_emitter", "blocking_recording_emitter"):
        assert any(line.startswith(f"{name} -- ") for line in lines), name
