"""What can be told of a dispatcher without a network. Knows nothing of click."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio.lowlevel

from dispytch.errors import ConfigurationError

if TYPE_CHECKING:
    from dispytch import EventDispatcher
    from dispytch._core.handlers import Handler
    from dispytch._runtime.wiring import Options, Wired
    from dispytch.abc import Consumer

__all__ = ["examine"]


async def examine(dispatcher: EventDispatcher) -> tuple[Sequence[Wired], list[str]]:
    """The consumers with their handlers, and what is wrong; there are no consumers if something is.

    In an event loop, since some of what is made here belongs to one.
    """
    from dispytch._runtime.wiring import wire

    await anyio.lowlevel.checkpoint()
    handlers, options = dispatcher._declared()
    problems: dict[str, None] = {}
    for handler in handlers:
        takers = [consumer for consumer in dispatcher.consumers if _is_for(handler, consumer, dispatcher.consumers)]
        for group in [[one] for one in takers] or [list(dispatcher.consumers)]:
            problems.update(dict.fromkeys(_problems(handler, group, options)))
    if not problems:
        try:
            return wire(handlers, dispatcher.consumers, options)[0], []
        except ConfigurationError as error:
            problems[str(error)] = None
    return [], list(problems)


def _is_for(handler: Handler, consumer: Consumer, consumers: Sequence[Consumer]) -> bool:
    if handler.consumer in consumers and handler.consumer is not consumer:
        return False
    try:
        return consumer.subscription_for(handler.subscription) is not None
    except ConfigurationError:
        return True  # and wiring says why it cannot be served


def _problems(handler: Handler, consumers: Sequence[Consumer], options: Options) -> Iterator[str]:
    """What is wrong with one handler."""
    from dispytch._runtime.wiring import wire

    own = {name: policy for name, policy in options.ack_policies.items() if name == handler.subscription}
    logger = logging.getLogger("dispytch")
    logger.disabled = True  # warnings are given once, when all are wired
    try:
        wire([handler], consumers, replace(options, ack_policies=own))
    except ConfigurationError as error:
        yield str(error)
    finally:
        logger.disabled = False
