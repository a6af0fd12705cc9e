"""`dispytch.django`: what is emitted when a transaction is committed, and what becomes of what fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError
from hypothesis import given
from hypothesis import settings as properties
from hypothesis import strategies as st

from dispytch import EventBase, producer_from_url
from dispytch.abc import Message, Receipt
from dispytch.django import EmitFailure, aemit, aemit_many, emit, emit_many, emit_on_commit, emitter
from dispytch.django.emitting import replaced
from dispytch.django.testing import recording
from dispytch.errors import (
    ConfigurationError,
    DispytchError,
    EmitManyError,
    EmitRejectedError,
    EmitTimeoutError,
    EmitUnreachableError,
)
from dispytch.memory import MemoryBroker
from dispytch.sync import EventEmitter
from dispytch.testing import BlockingRecordingEmitter, Faults
from tests.cli.support import read_all
from tests.frameworks.project import Placed, changed
from tests.support import closed_port, examples, unique

failures: list[EmitFailure] = []


def note(failure: EmitFailure) -> None:
    failures.append(failure)


def broken(failure: EmitFailure) -> None:
    raise ZeroDivisionError


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingRecordingEmitter]:
    failures.clear()
    with changed(ON_FAILURE=f"{__name__}:note"), recording() as emitted:
        yield emitted


def counting(emitted: BlockingRecordingEmitter) -> list[int]:
    """With how many messages its producer is called from now on."""
    found: list[int] = []
    send = emitted.producer.send

    def counted(messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        found.append(len(messages))
        return send(messages, timeout)

    emitted.producer.send = counted  # type: ignore[method-assign]  # it is the test's own
    return found


@pytest.fixture
def sends(emitted: BlockingRecordingEmitter) -> list[int]:
    return counting(emitted)


def numbers(emitted: BlockingRecordingEmitter) -> list[int]:
    return [event.n for event in emitted.emitted(Placed)]


class Undo(Exception):
    pass


def fail() -> None:
    raise LookupError("a hook")


def test_all_events_of_a_transaction_go_at_once_and_in_order(
    emitted: BlockingRecordingEmitter, sends: list[int]
) -> None:
    with transaction.atomic():
        emit_on_commit(Placed(n=1))
        with transaction.atomic():
            emit_on_commit(Placed(n=2), Placed(n=3))
        with suppress(Undo), transaction.atomic():
            emit_on_commit(Placed(n=4))
            raise Undo
        emit_on_commit(Placed(n=5))
        assert not numbers(emitted)
    assert numbers(emitted) == [1, 2, 3, 5]
    assert sends == [4]


def test_a_savepoint_that_is_rolled_back_at_the_end(emitted: BlockingRecordingEmitter, sends: list[int]) -> None:
    with transaction.atomic():
        emit_on_commit(Placed(n=1))
        with suppress(Undo), transaction.atomic():
            emit_on_commit(Placed(n=2))
            raise Undo
    assert numbers(emitted) == [1]
    assert sends == [1]


def test_what_is_rolled_back_is_never_emitted(emitted: BlockingRecordingEmitter, sends: list[int]) -> None:
    with suppress(Undo), transaction.atomic():
        emit_on_commit(Placed(n=1))
        raise Undo
    with transaction.atomic():
        emit_on_commit(Placed(n=2))
    assert numbers(emitted) == [2]
    with transaction.atomic(), suppress(Undo), transaction.atomic():
        emit_on_commit(Placed(n=3))
        raise Undo
    assert sends == [1]


Program = list[Any]
"""Numbers to emit, `_FAILING` for a hook that fails, and ``(has_savepoint, fails, program)`` for a block."""

_FAILING = -1
_number = st.integers(_FAILING, 9)
_programs: st.SearchStrategy[Program] = st.recursive(
    st.lists(_number, max_size=3),
    lambda inner: st.lists(_number | st.tuples(st.booleans(), st.booleans(), inner), max_size=4),
    max_leaves=12,
)


def expected(program: Program, found: list[int]) -> bool:
    """Adds what a committed block emits to ``found``; tells whether a block without a savepoint has doomed it."""
    start = len(found)
    is_doomed = False
    for item in program:
        if isinstance(item, int):
            found.append(item)
            continue
        has_savepoint, fails, inner = item
        before = len(found)
        inner_doomed = expected(inner, found)
        if fails or inner_doomed:
            del found[before:]
            is_doomed = is_doomed or not has_savepoint
    if is_doomed:
        del found[start:]
    return is_doomed


def carry_out(program: Program) -> None:
    for item in program:
        if isinstance(item, int):
            if item == _FAILING:
                transaction.on_commit(fail)
            else:
                emit_on_commit(Placed(n=item))
            continue
        has_savepoint, fails, inner = item
        with suppress(Undo), transaction.atomic(savepoint=has_savepoint):
            carry_out(inner)
            if fails:
                raise Undo


@given(_programs)
@properties(max_examples=examples(200), deadline=None)
def test_exactly_what_is_committed_is_emitted(program: Program) -> None:
    found: list[int] = []
    expected(program, found)
    with recording() as emitted:
        calls = counting(emitted)
        with pytest.raises(LookupError) if _FAILING in found else nullcontext(), transaction.atomic():
            carry_out(program)
    events = [number for number in found if number != _FAILING]
    assert numbers(emitted) == events
    assert calls == ([len(events)] if events else [])


def test_without_a_transaction_it_is_emitted_at_once(emitted: BlockingRecordingEmitter, sends: list[int]) -> None:
    emit_on_commit(Placed(n=1))
    emit_on_commit(Placed(n=2))
    assert numbers(emitted) == [1, 2]
    assert sends == [1, 1]


def test_without_a_transaction_where_autocommit_is_off(emitted: BlockingRecordingEmitter) -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError):
            emit_on_commit(Placed(n=1))
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert not numbers(emitted)


def test_other_hooks_run_where_they_were_registered(emitted: BlockingRecordingEmitter) -> None:
    order: list[Any] = []
    with transaction.atomic():
        transaction.on_commit(lambda: order.append(numbers(emitted)))
        emit_on_commit(Placed(n=1))
        transaction.on_commit(lambda: order.append(numbers(emitted)))
    assert order == [[], [1]]


@pytest.mark.parametrize("kind", [LookupError, SystemExit])
def test_a_hook_that_fails_before_the_events(emitted: BlockingRecordingEmitter, kind: type[BaseException]) -> None:
    """Django calls no hook after it, and the events are committed: they go, and then it is raised."""
    called: list[str] = []

    def hook() -> None:
        called.append("hook")
        raise kind

    with recording("audit") as audited:
        with pytest.raises(kind), transaction.atomic():
            transaction.on_commit(hook)
            transaction.on_commit(lambda: called.append("never"))
            transaction.on_commit(lambda: called.append("never"), robust=True)
            emit_on_commit(Placed(n=1), emitter="audit")
            with suppress(Undo), transaction.atomic():
                emit_on_commit(Placed(n=2))
                raise Undo
            emit_on_commit(Placed(n=3))
            transaction.on_commit(lambda: called.append("never"))
        assert (numbers(audited), numbers(emitted), called) == ([1], [3], ["hook"])


def test_a_hook_that_fails_between_events(emitted: BlockingRecordingEmitter, sends: list[int]) -> None:
    with pytest.raises(LookupError), transaction.atomic():
        emit_on_commit(Placed(n=1))
        transaction.on_commit(fail)
        emit_on_commit(Placed(n=2))
    with pytest.raises(LookupError), transaction.atomic():
        transaction.on_commit(fail)
        with suppress(Undo), transaction.atomic():  # of the events nothing is left, and it is raised all the same
            emit_on_commit(Placed(n=3))
            raise Undo
    with transaction.atomic(), suppress(Undo), transaction.atomic():
        transaction.on_commit(fail)
        emit_on_commit(Placed(n=4))
        raise Undo
    with pytest.raises(LookupError), transaction.atomic():
        emit_on_commit(Placed(n=5))
        transaction.on_commit(fail)
    assert numbers(emitted) == [1, 2, 5]
    assert sends == [2, 1]


def test_a_hook_that_emits_comes_after_what_was_committed_before(
    emitted: BlockingRecordingEmitter, sends: list[int]
) -> None:
    def later() -> None:
        with transaction.atomic():
            emit_on_commit(Placed(n=2))
            transaction.on_commit(lambda: emit_on_commit(Placed(n=4)))
            emit_on_commit(Placed(n=3))

    with transaction.atomic():
        emit_on_commit(Placed(n=1))
        transaction.on_commit(later)
        emit_on_commit(Placed(n=5))
        transaction.on_commit(lambda: emit(Placed(n=6)) and None)
        transaction.on_commit(lambda: None)
        emit_on_commit(Placed(n=7), Placed(n=8))
    assert numbers(emitted) == [1, 2, 4, 3, 5, 6, 7, 8]


def test_a_robust_hook_that_fails(emitted: BlockingRecordingEmitter, caplog: Any) -> None:
    order: list[Any] = []
    with transaction.atomic():
        transaction.on_commit(fail, robust=True)
        transaction.on_commit(lambda: order.append(numbers(emitted)))
        emit_on_commit(Placed(n=1))
        transaction.on_commit(fail, robust=True)
    assert (order, numbers(emitted)) == ([[]], [1])
    assert [one.getMessage().split(" in ")[0] for one in caplog.records] == ["Error calling fail"] * 2


def test_nothing_is_left_of_a_savepoint_that_is_rolled_back(emitted: BlockingRecordingEmitter) -> None:
    """As in each test of a TestCase: the next one begins with no callbacks."""
    with transaction.atomic():
        with suppress(Undo), transaction.atomic():
            emit_on_commit(Placed(n=1))
            with transaction.atomic():
                emit_on_commit(Placed(n=2))
            raise Undo
        assert connection.run_on_commit == []


def test_where_autocommit_is_off_for_good(emitted: BlockingRecordingEmitter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Django runs hooks when autocommit is turned on again, and so never."""
    monkeypatch.setitem(connection.settings_dict, "AUTOCOMMIT", False)
    with pytest.raises(TransactionManagementError, match="AUTOCOMMIT = False"), transaction.atomic():
        emit_on_commit(Placed(n=1))
    assert not numbers(emitted)


def test_each_database_has_transactions_of_its_own(emitted: BlockingRecordingEmitter, sends: list[int]) -> None:
    with transaction.atomic(), transaction.atomic(using="other"):
        emit_on_commit(Placed(n=1))
        emit_on_commit(Placed(n=2), using="other")
        emit_on_commit(Placed(n=3))
    assert numbers(emitted) == [2, 1, 3]
    assert sends == [1, 2]


def test_each_emitter_gets_its_own(emitted: BlockingRecordingEmitter) -> None:
    with recording("audit") as audited, transaction.atomic():
        emit_on_commit(Placed(n=1))
        emit_on_commit(Placed(n=2), emitter="audit")
        emit_on_commit(Placed(n=3))
    assert (numbers(emitted), numbers(audited)) == ([1, 3], [2])
    emit(Placed(n=4), emitter="audit")
    assert emit_many([Placed(n=5)], emitter="audit")
    assert numbers(audited) == [2]  # it was replaced for the block alone


def test_a_wrong_event_fails_before_the_commit(emitted: BlockingRecordingEmitter) -> None:
    class Nowhere(EventBase):
        n: int

    class Routed(EventBase):
        __topic__ = "routed.{name}"
        name: str

    with pytest.raises(ConfigurationError, match="has neither __topic__ nor __route__"), transaction.atomic():
        emit_on_commit(Nowhere(n=1))
    with pytest.raises(EmitRejectedError), transaction.atomic():
        emit_on_commit(Placed(n=1), Routed(name="a.b"))
    with pytest.raises(TypeError, match=r"emit_on_commit\(\*events\)"):
        emit_on_commit([Placed(n=1)])  # type: ignore[arg-type]  # the mistake that is made
    assert not numbers(emitted)


def test_what_fails_is_logged_and_handed_over(emitted: BlockingRecordingEmitter, caplog: Any) -> None:
    faults = Faults()
    event = Placed(n=1)
    with recording(broker=MemoryBroker(faults=faults)) as failing, transaction.atomic():
        emit_on_commit(event, Placed(n=2), Placed(n=3))
        faults.fail("lose_reply")
    assert numbers(failing) == [1, 2, 3]
    (failure,) = failures
    assert failure.event is event
    assert (failure.topic, failure.emitter) == ("placed", "default")
    assert isinstance(failure.error, EmitTimeoutError)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert failure.id in record.getMessage()
    assert record.event_id == failure.id
    emit(failure.event)
    assert emitted.emissions[-1].id == failure.id  # it can be told from what may have gone before


def test_each_event_that_fails_is_told(emitted: BlockingRecordingEmitter) -> None:
    faults = Faults()
    with recording(broker=MemoryBroker(faults=faults)), transaction.atomic():
        faults.fail("unreachable", times=10)
        emit_on_commit(Placed(n=1), Placed(n=2))
    assert [failure.event.n for failure in failures if isinstance(failure.event, Placed)] == [1, 2]
    assert all("unreachable" in str(failure.error) for failure in failures)


def test_a_callback_that_fails_does_no_harm(emitted: BlockingRecordingEmitter, caplog: Any) -> None:
    faults, after = Faults(), []
    faults.fail("reject")
    with changed(ON_FAILURE=broken), recording(broker=MemoryBroker(faults=faults)), transaction.atomic():
        emit_on_commit(Placed(n=1))
        transaction.on_commit(lambda: after.append("it ran"))
    assert after == ["it ran"]
    assert "DISPYTCH['ON_FAILURE'] failed" in caplog.records[-1].getMessage()


def test_a_callback_that_fails_for_one_event_gets_the_others(emitted: BlockingRecordingEmitter) -> None:
    faults, kept = Faults(), []

    def keep(failure: EmitFailure) -> None:
        kept.append(failure.event)
        if len(kept) == 1:
            raise LookupError

    faults.fail("reject", times=3)
    with changed(ON_FAILURE=keep), recording(broker=MemoryBroker(faults=faults)), transaction.atomic():
        emit_on_commit(Placed(n=1), Placed(n=2), Placed(n=3))
    assert [event.n for event in kept if isinstance(event, Placed)] == [1, 2, 3]


def test_a_bug_in_a_client_is_no_silent_loss(
    emitted: BlockingRecordingEmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(error: BaseException, *_: object) -> None:
        raise error

    monkeypatch.setattr(emitted.producer, "send", partial(send, ZeroDivisionError()))
    emit_on_commit(Placed(n=1))
    assert isinstance(failures[0].error, ZeroDivisionError)
    monkeypatch.setattr(emitted.producer, "send", partial(send, SystemExit(1)))
    with pytest.raises(SystemExit), transaction.atomic():
        emit_on_commit(Placed(n=2))
    assert isinstance(failures[1].error, SystemExit)


def test_a_closed_emitter(emitted: BlockingRecordingEmitter) -> None:
    with transaction.atomic():
        emit_on_commit(Placed(n=1))
        emitted.close()
    assert "is closed" in str(failures[0].error)


def test_emitting_now_raises(emitted: BlockingRecordingEmitter) -> None:
    faults = Faults()
    faults.fail("reject", times=2)
    with recording(broker=MemoryBroker(faults=faults)):
        with pytest.raises(EmitRejectedError):
            emit(Placed(n=1))
        with pytest.raises(EmitManyError):
            emit_many([Placed(n=2)])
        receipt = emit(Placed(n=3), id="mine")
    assert receipt is not None
    assert receipt.id == "mine"
    assert not failures


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_asynchronous_views(emitted: BlockingRecordingEmitter, anyio_backend: str) -> None:
    with pytest.raises(ConfigurationError, match="an event loop runs"):
        emit(Placed(n=1))
    await aemit(Placed(n=2))
    await aemit_many([Placed(n=3), Placed(n=4)])
    await anyio.to_thread.run_sync(emit, Placed(n=5))
    assert numbers(emitted) == [2, 3, 4, 5]


def test_emitters_by_alias() -> None:
    assert emitter() is emitter()
    assert emitter("audit") is not emitter()
    with pytest.raises(ImproperlyConfigured, match=r"there is no emitter 'other'.*'default', 'audit'"):
        emitter("other")
    before = emitter()
    with changed(SOURCE="elsewhere"):
        assert emitter() is not before
        with pytest.raises(EmitRejectedError, match="closed"):
            before.emit(Placed(n=1))


own = EventEmitter(producer_from_url("memory://own"))


def make_own() -> EventEmitter:
    return own


def test_an_emitter_of_ones_own() -> None:
    with changed(EMITTERS={"default": f"{__name__}:own", "made": f"{__name__}.make_own"}):
        assert emitter() is own
        assert emitter("made") is own
    own.emit(Placed(n=1))  # the project's own is not closed with the settings of a test
    with changed(EMITTERS={"default": f"{__name__}:note"}), pytest.raises(TypeError):
        emitter()
    with changed(EMITTERS={"default": f"{__name__}:failures"}), pytest.raises(ImproperlyConfigured, match="type list"):
        emitter()


def test_a_request_waits_no_longer_than_its_timeout() -> None:
    failures.clear()
    with (
        changed(ON_FAILURE=note, URL=f"redis+stream://127.0.0.1:{closed_port()}", TIMEOUT=0.3),
        transaction.atomic(),
    ):
        emit_on_commit(Placed(n=1), Placed(n=2))
    assert [type(failure.error) for failure in failures] == [EmitUnreachableError] * 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "kafka"])
def test_a_forked_child_connects_anew(broker: str, request: pytest.FixtureRequest) -> None:
    """As gunicorn does it, with an emitter that was used before the fork."""
    url = request.getfixturevalue(f"{broker}_url").replace("redis://", "redis+stream://", 1)

    class Forked(EventBase):
        __topic__ = unique("forked")
        n: int

    with changed(URL=url, TIMEOUT=20.0):
        emitter().producer.start()
        with suppress(EmitRejectedError):  # on RabbitMQ nobody listens
            emit(Forked(n=0))
        child = os.fork()
        if not child:
            code = 1
            try:
                for n in range(1, 4):
                    with suppress(EmitRejectedError), transaction.atomic():
                        emit(Forked(n=n))
                emitter().close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with suppress(EmitRejectedError):
            emit(Forked(n=4))
    if broker == "redis":
        assert [entry["body"]["n"] for entry in read_all(url, Forked.__topic__)] == [0, 1, 2, 3, 4]


def test_replacements_nest() -> None:
    with recording() as outer:
        with recording() as inner:
            emit(Placed(n=1))
        emit(Placed(n=2))
        with replaced("default", inner):
            emit(Placed(n=3))
    assert (numbers(inner), numbers(outer)) == ([1, 3], [2])


def test_nothing_is_left_in_the_connection() -> None:
    assert connection.run_on_commit == []
