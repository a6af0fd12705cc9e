"""A folder with a program in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import APP


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path
