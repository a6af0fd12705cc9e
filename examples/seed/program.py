"""Emits what the first page emits, and handles it as the first page does."""

from __future__ import annotations

from emitting import example_emit
from handling import user_events
from loops import run
from service import get_user_service

from dispytch import EventDispatcher, EventEmitter
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer


async def main() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    dispatcher.add_handler_group(user_events)
    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await example_emit(emitter)
        await dispatcher.idle()
    service = await get_user_service()
    print(f"{len(service.done)} user served")


if __name__ == "__main__":
    run(main)
