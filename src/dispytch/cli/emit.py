"""``dispytch emit``: events from the command line, or from standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import BufferedReader
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, cast
from urllib.parse import urlsplit

import click
from pydantic import ValidationError

from dispytch import EventBase, producer_from_url
from dispytch.abc import Receipt
from dispytch.cli.app import Command
from dispytch.cli.brokers import broker_url, declaring
from dispytch.cli.errors import CommandError, UsageProblem, exit_code
from dispytch.cli.loading import load_event
from dispytch.cli.options import app_dir_option
from dispytch.errors import BrokerUnreachableError, DispytchError, EmitManyError
from dispytch.sync import EventEmitter

__all__ = ["command"]

_READ_SIZE = 1024 * 1024
_MOST_AT_ONCE = 1000


@click.command("emit", cls=Command)
@click.argument("target", metavar="MODULE:EVENT")
@click.argument("fields", metavar="[FIELDS]...", nargs=-1)
@click.option(
    "--to",
    "url",
    type=broker_url,
    metavar="URL",
    required=True,
    help="The broker; env:NAME takes it from the environment.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that the broker may take to answer at first, and then to confirm.",
)
@click.option("--source", default="dispytch", show_default=True, help="What emits, as CloudEvents has it.")
@click.option("--json", "is_json", is_flag=True, help="Show receipts as JSON, one a line.")
@app_dir_option
def command(
    target: str, fields: tuple[str, ...], url: str, timeout: float, source: str, is_json: bool, app_dir: str
) -> None:
    """Emit an event of the class MODULE:EVENT, validated, and wait until the broker has confirmed it.

    FIELDS are name=value for text, numbers, dates and the like, name:=JSON for anything, or one JSON object. With -
    each line of standard input is the JSON object of an event.
    """
    kind = load_event(target, app_dir)
    if not (isinstance(kind, type) and issubclass(kind, EventBase)):
        raise UsageProblem(f'"{target}" is no event class (its type is {type(kind).__name__}); name an EventBase')
    event = None if fields == ("-",) else _validated(kind, _given(fields), UsageProblem)
    # Blocking, since standard input is: a thread that waits for it could not be left at Ctrl-C.
    with declaring():
        producer = producer_from_url(url)
    with closing(EventEmitter(producer, source=source, timeout=timeout)) as emitter:
        _connect(emitter, url, timeout)
        if event is None:
            _emit_lines(kind, emitter, is_json)
        else:
            _show(emitter.emit(event), is_json)


def _connect(emitter: EventEmitter, url: str, timeout: float) -> None:
    """Waits until the broker has answered; clients would do so for as long as they like.

    Raises:
        BrokerUnreachableError: it has not.
    """
    outcome: SimpleQueue[Exception | None] = SimpleQueue()

    def start() -> None:
        try:
            emitter.start()
        except Exception as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # Nobody waits for the thread any more once the time is over: the process ends.
    Thread(target=start, name="dispytch connecting", daemon=True).start()
    try:
        problem = outcome.get(timeout=timeout)
    except Empty:
        server = urlsplit(url).netloc.rpartition("@")[2]
        raise BrokerUnreachableError(
            f"cannot connect to {server}: no answer came within {timeout:g} s; check the address, that the server is "
            "running, and TLS, or give it more --timeout"
        ) from None
    if problem is not None:
        raise problem


# --- fields


def _given(fields: Sequence[str]) -> str:
    """The JSON text of what the command line says."""
    if len(fields) == 1 and fields[0].lstrip().startswith("{"):
        return fields[0]
    found: dict[str, Any] = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals or not name.strip(":"):
            raise UsageProblem(f"{text!r} is no field; write name=value, name:=JSON, or one JSON object in quotes")
        is_raw = name.endswith(":")
        name = name.removesuffix(":") if is_raw else name
        if name in found:
            raise UsageProblem(f"the field {name!r} is given twice; give it once")
        try:
            found[name] = json.loads(value) if is_raw else value
        except json.JSONDecodeError as error:
            raise UsageProblem(
                f"the value of {name}:= is no JSON ({error}); text needs quotes in it, or write {name}={value}"
            ) from None
    return json.dumps(found)


def _validated(kind: type[EventBase], text: str | bytes, problem: type[CommandError]) -> EventBase:
    """The event, or the problem in one line: every field that is wrong, and what it should be."""
    try:
        event = kind.model_validate_json(text)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise problem(f"no {kind.__name__}: {'; '.join(wrong)}; its fields are {_fields(kind)}") from None
    if kind.model_config.get("extra") != "allow":
        known = {name for name, field in kind.model_fields.items()}
        known |= {alias for field in kind.model_fields.values() for alias in _aliases(field)}
        if unknown := json.loads(text).keys() - known:
            names = ", ".join(sorted(unknown))
            raise problem(f"{kind.__name__} has no field {names}; its fields are {_fields(kind)}")
    return event


def _aliases(field: Any) -> Iterator[str]:
    choices = getattr(field.validation_alias, "choices", [field.validation_alias])
    for choice in choices:
        first = choice if isinstance(choice, str) else getattr(choice, "path", [None])[0]
        if isinstance(first, str):
            yield first


def _fields(kind: type[EventBase]) -> str:
    return ", ".join(kind.model_fields) or "none"


# --- emitting


def _emit_lines(kind: type[EventBase], emitter: EventEmitter, is_json: bool) -> None:
    count = number = 0
    rest = b""
    stdin = cast(BufferedReader, sys.stdin.buffer)
    while True:
        # What is there is emitted at once: it may come from a program that goes on.
        data = stdin.read1(_READ_SIZE)
        *lines, rest = (rest + data).split(b"\n") if data else (rest, b"")
        for start in range(0, len(lines), _MOST_AT_ONCE):
            events: list[EventBase] = []
            failure: CommandError | None = None
            numbers: list[int] = []
            for line in lines[start : start + _MOST_AT_ONCE]:
                number += 1
                if not line.strip():
                    continue
                try:
                    events.append(_validated(kind, line, CommandError))
                except CommandError as error:
                    failure = CommandError(f"line {number}: {error}")
                    break
                numbers.append(number)
            count += _emit_chunk(emitter, events, numbers, count, is_json)
            if failure is not None:
                raise CommandError(f"{failure}; {_emitted(count)}, and nothing from line {number} on")
        if not data:
            click.echo(_emitted(count), err=True)
            return


def _emit_chunk(
    emitter: EventEmitter, events: Sequence[EventBase], numbers: Sequence[int], before: int, is_json: bool
) -> int:
    try:
        receipts = emitter.emit_many(events)
    except EmitManyError as error:
        good = sum(isinstance(result, Receipt) for result in error.results)
        first = next(n for n, result in enumerate(error.results) if isinstance(result, DispytchError))
        failure = CommandError(
            f"line {numbers[first]}: {error.results[first]}; {_emitted(before + good)}, and {len(events) - good} of "
            f"the lines {numbers[0]} to {numbers[-1]} are not confirmed"
        )
        failure.exit_code = exit_code(error)
        raise failure from error
    if is_json:
        for receipt in receipts:
            _show(receipt, is_json)
    return len(receipts)


def _emitted(count: int) -> str:
    return f"{count} event{'' if count == 1 else 's'} emitted"


def _show(receipt: Receipt | None, is_json: bool) -> None:
    if receipt is None:
        return
    facts = {name: value for name, value in receipt._asdict().items() if value is not None}
    if is_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(", ".join((f"{facts.pop('id')} to {facts.pop('route')}", *(f"{n} {v}" for n, v in facts.items()))))
    if receipt.receivers == 0:
        click.echo("Nobody was subscribed, so nobody got it.", err=True)
