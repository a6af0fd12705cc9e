"""Every error that Dispytch raises, by what the reader of it can do.

```text
DispytchError
├── ConfigurationError          the program is wrong: change the code or the options
│   ├── RegistrationError       ... a handler, its parameters or its dependencies
│   └── MissingExtraError       ... or an optional package is not installed (also an ImportError)
├── EmitError                   an event was not confirmed
│   ├── EmitRejectedError       it did not go: correct it, or emit it again without fear of a repeat
│   │   └── EmitUnreachableError    ... since no broker answered (also a BrokerUnreachableError)
│   ├── EmitTimeoutError        it may have gone: emit it again if handlers bear repeats (also a TimeoutError)
│   ├── EmitManyError           some of a batch failed: see its ``results``
│   └── UnconfirmedError        a producer was closed with events unconfirmed: see its ``count``
├── DecodeError                 a message is not what the handler expects: permanent, never retried
├── BrokerError                 the broker refused, or broke off
│   └── BrokerUnreachableError  ... or cannot be reached: check the address and the server
└── DeliveryError               an event could not be settled, for instance dead-lettered
```

Exceptions of client libraries are wrapped at the edge, with the original as ``__cause__``. Decoding errors carry
sanitised details instead, since the originals quote the payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dispytch._core.messages import Receipt

__all__ = [
    "BrokerError",
    "BrokerUnreachableError",
    "ConfigurationError",
    "DecodeError",
    "DeliveryError",
    "DispytchError",
    "EmitError",
    "EmitManyError",
    "EmitRejectedError",
    "EmitTimeoutError",
    "EmitUnreachableError",
    "MissingExtraError",
    "RegistrationError",
    "UnconfirmedError",
]


class DispytchError(Exception):
    """The root of all errors that Dispytch raises."""


class ConfigurationError(DispytchError):
    """A declaration or an option is wrong; nothing was sent or consumed."""


class RegistrationError(ConfigurationError):
    """A handler cannot be called as it is declared; raised when it is registered, or before consuming starts."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is needed and absent; the message says which extra installs it."""


class EmitError(DispytchError):
    """An event was not confirmed."""


class EmitRejectedError(EmitError):
    """The event did not go: it is unroutable, too large, or was refused."""


class EmitTimeoutError(EmitError, TimeoutError):
    """No confirmation came in time, or the connection broke off before it did: the event may have gone."""


class EmitManyError(EmitError):
    """Some events of an ``emit_many`` failed.

    ``results`` is aligned with the events given: a ``Receipt`` for each that was confirmed, an error for each that
    was not, ``None`` for each that an ``on_timeout`` callback took.
    """

    def __init__(self, message: str, results: Sequence[Receipt | DispytchError | None]) -> None:
        super().__init__(message)
        self.results: tuple[Receipt | DispytchError | None, ...] = tuple(results)

    def __reduce__(self) -> tuple[type[EmitManyError], tuple[object, ...]]:
        return type(self), (self.args[0], self.results)


class UnconfirmedError(EmitError):
    """A producer was closed while ``count`` events were not confirmed."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count: int = count

    def __reduce__(self) -> tuple[type[UnconfirmedError], tuple[object, ...]]:
        return type(self), (self.args[0], self.count)


class DecodeError(DispytchError):
    """A message cannot be decoded, or does not have the shape that the handler declares; trying again is useless."""


class BrokerError(DispytchError):
    """The broker refused an operation or broke it off."""


class BrokerUnreachableError(BrokerError):
    """No connection to the broker could be made, or it was lost."""


class EmitUnreachableError(EmitRejectedError, BrokerUnreachableError):
    """The event did not go, since no connection to the broker could be made."""


class DeliveryError(DispytchError):
    """An event could not be settled as it should have been."""
