"""For the tests of Django projects: an emitter that notes what is emitted, in the place of the one of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dispytch._runtime.urls import producer_from_url
from dispytch.django import conf
from dispytch.django.emitting import replaced
from dispytch.memory import MemoryBroker
from dispytch.testing import BlockingRecordingEmitter

__all__ = ["recording"]


@contextmanager
def recording(emitter: str = conf.DEFAULT, *, broker: MemoryBroker | None = None) -> Iterator[BlockingRecordingEmitter]:
    """Notes what is emitted meanwhile: ``with recording() as emitted: ...; emitted.assert_emitted(OrderPlaced)``.

    No broker gets it, and the rules of the real one on routes, names and sizes hold. In a ``TestCase`` nothing is
    committed, so what `emit_on_commit` was given is emitted where the test says so:
    ``with recording() as emitted, self.captureOnCommitCallbacks(execute=True):``.

    Args:
        emitter: The alias of the emitter in whose place it is.
        broker: The in-process broker that gets the events, for handlers that listen there, and whose faults are the
            emitter's; by default one of its own.

    Raises:
        ImproperlyConfigured: the setting ``DISPYTCH`` is wrong.
        ConfigurationError: the emitter's URL is wrong.
    """
    config = conf.current().emitters.get(emitter)
    made = BlockingRecordingEmitter(
        like=producer_from_url(config.url) if isinstance(config, conf.EmitterConfig) else None,
        broker=broker,
        source=config.source if isinstance(config, conf.EmitterConfig) else "django",
    )
    with replaced(emitter, made):
        yield made
