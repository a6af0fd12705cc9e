"""The dispatcher's page, set-up of a router: related handlers in a module of their own, with shared middleware."""

from __future__ import annotations

from loops import run
from pydantic import BaseModel

from dispytch import Event, EventBase, EventDispatcher, EventEmitter, EventSubscription, Router
from dispytch.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from dispytch.middleware import ExponentialBackoffWithFullJitter, Retry


class User(BaseModel):
    name: str


class UserCreated(EventBase):
    __topic__ = "user_events"
    name: str


class UserDeleted(EventBase):
    __topic__ = "user_events"
    name: str


router = Router(
    middlewares=[Retry(ExponentialBackoffWithFullJitter(retries=5, retry_on=[IOError], base_delay_sec=0.01))]
)


@router.handler(EventSubscription(topic="user_events", event="UserCreated"))
async def handle_user_created(event: Event[User]) -> None:
    if event.meta.attempt < 3:
        raise OSError("not yet")
    print(f"created: {event.body.name}, at attempt {event.meta.attempt}")


@router.handler(EventSubscription(topic="user_events", event="UserDeleted"))
async def handle_user_deleted(event: Event[User]) -> None:
    print(f"deleted: {event.body.name}")


async def main() -> None:
    broker = MemoryBroker()
    dispatcher = EventDispatcher(MemoryConsumer(broker))
    dispatcher.add_router(router)
    async with EventEmitter(MemoryProducer(broker)) as emitter, dispatcher.lifespan():
        await emitter.emit(UserCreated(name="ada"))
        await dispatcher.idle()
        await emitter.emit(UserDeleted(name="ada"))
        await dispatcher.idle()


if __name__ == "__main__":
    run(main)
