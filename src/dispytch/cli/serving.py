"""One process that runs a dispatcher: the command itself, or a worker of it. Knows nothing of click."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from anyio.abc import TaskStatus

from dispytch._runtime.dispatcher import EventDispatcher, loop_options
from dispytch.cli.errors import CONFIGURATION, FAILURE, CommandError, exit_code, one_line, sole
from dispytch.cli.loading import load_dispatcher
from dispytch.cli.logs import configure
from dispytch.errors import ConfigurationError

__all__ = ["RunOptions", "report", "serve", "serve_until_signal", "warn_of_repeats"]

logger: logging.Logger = logging.getLogger("dispytch")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a process is to run, and how.

    Attributes:
        target: The dispatcher's import string.
        app_dir: Where modules are looked for first.
        factory: It names a function that makes the dispatcher.
        loop: ``"asyncio"``, ``"uvloop"`` or ``"trio"``.
        log_format, log_level, log_config: See `dispytch.cli.logs.configure`.
        debug: Whether tracebacks are shown.
        workers: How many processes run the same.
        worker: The number of this one, from 1; 0 for the only process.
        http: Where health and metrics are told, ``[HOST:]PORT``.
        heartbeat: The file that is to tell how it is doing.
        socket: Where a worker tells it, to its supervisor, in the place of both.
    """

    target: str
    app_dir: str
    factory: bool
    loop: str
    log_format: str
    log_level: str
    debug: bool
    workers: int = 1
    worker: int = 0
    log_config: str | None = None
    http: str | None = None
    heartbeat: str | None = None
    socket: str | None = None


class Stop:
    """The signals so far: the first one drains, the second one cancels.

    Attributes:
        code: The exit code: 0, unless the stop was cut short.
    """

    def __init__(self, dispatcher: EventDispatcher) -> None:
        self._dispatcher = dispatcher
        self.requested: bool = False
        self.code: int = 0

    async def watch(
        self, scope: anyio.CancelScope, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if not self.requested:
                    self.requested = True
                    logger.info("%s: draining; once more cancels.", name)
                    self._dispatcher.request_stop()
                else:
                    self.code = 128 + number
                    logger.warning("%s again: cancelling what is in flight.", name)
                    scope.cancel()


def serve(options: RunOptions) -> int:
    """Runs the dispatcher until a signal comes; returns the exit code.

    A run that was cancelled ends the process here, since a thread that does not return would keep it.

    Raises:
        CommandError, DispytchError: it cannot be loaded or started, or a broker ended it.
    """
    configure(options.log_format, options.log_level, str(options.worker or ""), options.log_config)
    dispatcher = load_dispatcher(options.target, options.app_dir, options.factory)
    if options.workers > 1:
        warn_of_repeats(dispatcher, options.workers)
    beside: Sequence[AbstractAsyncContextManager[Any]] = ()
    if options.http is not None or options.heartbeat is not None:
        from dispytch.cli.probes import probes_of

        beside = probes_of(dispatcher, options)
    serve_until_signal(dispatcher, options.loop, beside)
    return 0


def serve_until_signal(
    dispatcher: EventDispatcher, loop: str, beside: Sequence[AbstractAsyncContextManager[Any]] = ()
) -> None:
    """Runs a dispatcher: the first SIGINT or SIGTERM drains, and a second one cancels, and ends the process here.

    The process is for that alone: what there is already is no more the garbage collector's.

    Args:
        loop: ``"asyncio"``, ``"uvloop"`` or ``"trio"``.
        beside: What is entered before it starts, and exited when it has drained.

    Raises:
        DispytchError: it cannot be started, or a broker ended it.
    """
    backend: Literal["asyncio", "trio"] = "trio" if loop == "trio" else "asyncio"
    stop = Stop(dispatcher)
    # Events in flight are what makes the collector look through everything again and again: what the program has
    # imported and made by now stays anyway.
    gc.collect()
    gc.freeze()
    try:
        anyio.run(
            _serve,
            dispatcher,
            stop,
            beside,
            backend=backend,
            backend_options=loop_options(backend, loop == "uvloop"),
        )
    except BaseExceptionGroup as group:
        raise sole(group) from None
    finally:
        if stop.code:
            logging.shutdown()
            sys.stdout.flush()
            os._exit(stop.code)


async def _serve(dispatcher: EventDispatcher, stop: Stop, beside: Sequence[AbstractAsyncContextManager[Any]]) -> None:
    async with AsyncExitStack() as stack:
        for one in beside:
            await stack.enter_async_context(one)
        async with anyio.create_task_group() as group:
            await group.start(stop.watch, group.cancel_scope)
            if not stop.requested:
                await dispatcher.start()
            group.cancel_scope.cancel()


def report(error: BaseException, options: RunOptions) -> int:
    """Says why a run ended, in the form of its log; returns the exit code of a worker."""
    trace = sole(error) if options.debug else None
    if options.log_format == "json":
        logger.critical("%s", one_line(error), exc_info=trace)
    else:
        if trace is not None:
            logger.critical("The traceback of the error below:", exc_info=trace)
        print(f"Error: {one_line(error)}", file=sys.stderr)
    if (code := exit_code(error)) != FAILURE:
        return code
    return CONFIGURATION if isinstance(error, CommandError | ConfigurationError) else FAILURE


def warn_of_repeats(dispatcher: EventDispatcher, workers: int) -> None:
    """Warns where workers do not share the events."""
    for consumer in dispatcher.consumers:
        if consumer.transport == "memory" or not consumer.features.consumer_groups:
            logger.warning(
                "%r shares nothing with other processes: each of the %d workers %s.",
                consumer,
                workers,
                "has a broker of its own" if consumer.transport == "memory" else "handles every event",
            )
