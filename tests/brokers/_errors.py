class BrokersError(Exception):
    """A broker cannot be started, stopped or found; the message says what to do next."""


class MissingServerError(BrokersError):
    """The server program is not installed, and nobody asked to install it."""
