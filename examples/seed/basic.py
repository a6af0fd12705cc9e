"""The dispatcher's page, basic structure: a consumer, a dispatcher, a handler."""

from __future__ import annotations

from loops import run
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, EventSubscription
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer


class T(BaseModel):
    user_id: str


class UserSeen(EventBase):
    __topic__ = "user_events"
    user_id: str


broker = MemoryBroker()
consumer = MemoryConsumer(broker)

dispatcher = EventDispatcher(consumer)


@dispatcher.handler(EventSubscription(topic="user_events"))
async def handle_event(event: Event[T]) -> None:
    print(f"seen: {event.body.user_id}")


async def main() -> None:
    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit(UserSeen(user_id="ada"))
        await dispatcher.idle()


if __name__ == "__main__":
    run(main)
