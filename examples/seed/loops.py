"""Runs an example on the loop that the command line names."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

import anyio


def run(main: Callable[[], Awaitable[None]]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio"], default="asyncio")
    loop = parser.parse_args().loop
    options = {"use_uvloop": True} if loop == "uvloop" else {}
    anyio.run(main, backend="trio" if loop == "trio" else "asyncio", backend_options=options)
