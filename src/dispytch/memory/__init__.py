"""The in-process broker and its transport: for tests and programs without a server, and the model of a transport."""

from dispytch.memory.broker import FaultHook, FaultPoint, MemoryBroker, Record
from dispytch.memory.clients import BlockingMemoryProducer, MemoryConsumer, MemoryProducer
from dispytch.memory.routes import MemoryEventConfig, MemoryEventRoute, MemoryEventSubscription

__all__ = [
    "BlockingMemoryProducer",
    "FaultHook",
    "FaultPoint",
    "MemoryBroker",
    "MemoryConsumer",
    "MemoryEventConfig",
    "MemoryEventRoute",
    "MemoryEventSubscription",
    "MemoryProducer",
    "Record",
]
