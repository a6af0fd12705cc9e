"""A PostgreSQL server for tests, with its socket in a folder and no port."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import blocking_until

__all__ = ["running"]


@contextmanager
def running(program: str) -> Iterator[Path]:
    """Runs a server; its value is the folder of its socket.

    Args:
        program: The path of ``postgres``, beside which the others are.
    """
    programs = Path(program).resolve().parent  # of a link, what it leads to
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has at most 107 bytes
    user = None
    if os.geteuid() == 0:  # as which PostgreSQL refuses to run
        user = "postgres"
        shutil.chown(folder, user)
    try:
        subprocess.run(
            [
                programs / "initdb",
                "--pgdata",
                folder / "data",
                "--username",
                "postgres",
                "--auth",
                "trust",
                "--no-sync",
            ],
            user=user,
            cwd=folder,
            check=True,
            capture_output=True,
        )
        options = ["-h", "", "-k", str(folder), "-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [program, "-D", folder / "data", *options], user=user, cwd=folder, stdout=log, stderr=log
            )
        try:
            blocking_until(lambda: "ready to accept connections" in (folder / "log").read_text())
            yield folder
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
