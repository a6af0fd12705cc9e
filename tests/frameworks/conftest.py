"""Sets Django up before tests import what needs that, such as models."""

from __future__ import annotations

from tests.frameworks import project

__all__ = ["project"]
