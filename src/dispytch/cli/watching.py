"""Which files of a folder have changed.

By looking at them, with the standard library: that needs no further package, and works where notifications do not come
through, as in folders that are mounted into containers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Files"]

_SKIPPED = {"__pycache__", "node_modules", "site-packages"}


class Files:
    """The Python files below a folder; hidden folders and virtual environments are left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = dict(self._look())

    def changed(self) -> list[str]:
        """The files that were written, made or removed since this was last asked, relative to the folder."""
        known, self._known = self._known, dict(self._look())
        differing = {path for path, _ in known.items() ^ self._known.items()}
        return sorted(os.path.relpath(path, self._folder) for path in differing)

    def _look(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder, names, files in os.walk(self._folder):
            if "pyvenv.cfg" in files:
                names.clear()
                continue
            names[:] = [name for name in names if name not in _SKIPPED and not name.startswith(".")]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    try:
                        found = os.stat(path)
                    except FileNotFoundError:  # removed between the listing and the look
                        continue
                    yield path, (found.st_mtime_ns, found.st_size)
