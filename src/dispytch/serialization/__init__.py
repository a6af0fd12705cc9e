"""Codecs (how a body becomes bytes) and envelopes (how the rest of an event travels with it)."""

from dispytch._core.codec import Deserializer, JSONDeserializer, JSONSerializer, Serializer
from dispytch._core.envelope import BareEnvelope, ClassicEnvelope, CloudEventsEnvelope, Envelope
from dispytch.serialization.msgpack import MessagePackDeserializer, MessagePackSerializer

__all__ = [
    "BareEnvelope",
    "ClassicEnvelope",
    "CloudEventsEnvelope",
    "Deserializer",
    "Envelope",
    "JSONDeserializer",
    "JSONSerializer",
    "MessagePackDeserializer",
    "MessagePackSerializer",
    "Serializer",
]
