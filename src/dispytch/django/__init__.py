"""Dispytch in Django projects: ``INSTALLED_APPS = [..., "dispytch.django"]``, and one setting, ``DISPYTCH``.

Views emit with `emit` and `emit_on_commit`; ``manage.py dispytch_worker`` runs the handlers of all apps. Tests take
`dispytch.django.testing`. See docs/guide/django.md.
"""

from dispytch.errors import MissingExtraError

try:
    import django as _django  # noqa: F401
except ImportError as _error:
    raise MissingExtraError('Django is not installed: pip install "dispytch[django]"') from _error

from dispytch.django.dispatching import dispatcher
from dispytch.django.emitting import aemit, aemit_many, emit, emit_many, emit_on_commit, emitter
from dispytch.django.failures import EmitFailure

__all__ = [
    "EmitFailure",
    "aemit",
    "aemit_many",
    "dispatcher",
    "emit",
    "emit_many",
    "emit_on_commit",
    "emitter",
]
