"""Progress bars, and what to say of packages that are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

INSTALL = "pip install --group bench"


def missing(package: str, use: str) -> str | None:
    """What to say if a package is not installed."""
    return None if find_spec(package) else f"{use}: {package} is not installed; `{INSTALL}` brings it."


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on standard error; what is yielded is called with what begins, once for each of ``total`` steps."""
    if missing("rich", "progress bars"):
        say(f"No progress bars: rich is not installed; `{INSTALL}` brings it.")
        begun = 0

        def begin(what: str) -> None:
            nonlocal begun
            begun += 1
            say(f"[{begun}/{total}] {what}")

        yield begin
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        is_first = True

        def advance(what: str) -> None:
            nonlocal is_first
            bar.update(task, advance=0 if is_first else 1, description=what)
            is_first = False

        yield advance
        bar.update(task, completed=total, description="done")
