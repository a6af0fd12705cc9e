"""Finding server programs, and installing them where apt-get can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from ._errors import BrokersError, MissingServerError
from ._servers import Server


def find(server: Server) -> str | None:
    return server.find()


def find_or_install(server: Server, *, install: bool) -> str:
    """The path of the server's program."""
    if (found := find(server)) is not None:
        return found
    if not install:
        raise MissingServerError(
            f"{server.program} is not on PATH. Install it with `python -m tests.brokers up {server.name} --install` or "
            f"`pytest --install-brokers` (Debian and Ubuntu, as root or with sudo), {_otherwise(server)}."
        )
    _apt_get_install(server)
    if (found := find(server)) is not None:
        return found
    raise BrokersError(
        f"The package {server.debian_package} was installed, yet {server.program} is not on PATH: "
        f"run `dpkg -L {server.debian_package}` to see where it is, and add that folder to PATH."
    )


def _apt_get_install(server: Server) -> None:
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise BrokersError(
            f"Cannot install {server.program}: there is no apt-get here. Install it with this system's own package "
            f"manager, {_otherwise(server)}."
        )
    command = [*_as_root(server), apt_get]
    _run([*command, "update"], server)
    _run([*command, "install", "--yes", "--no-install-recommends", server.debian_package], server)


def _as_root(server: Server) -> Sequence[str]:
    quietly = ("env", "DEBIAN_FRONTEND=noninteractive")
    if os.geteuid() == 0:
        return quietly
    sudo = shutil.which("sudo")
    if sudo is None:
        raise BrokersError(
            f"Cannot install {server.program}: not root, and there is no sudo. "
            f"As root, run `apt-get install {server.debian_package}`, {_otherwise(server)}."
        )
    interactive = sys.stdin is not None and sys.stdin.isatty()
    return (sudo, *(() if interactive else ("-n",)), *quietly)


def _run(command: Sequence[str], server: Server) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BrokersError(
            f"Cannot install {server.program}: `{' '.join(command)}` ended with {done.returncode}.\n"
            f"{done.stdout.strip()[-2000:]}\nRun it by hand to see what is wrong, {_otherwise(server)}."
        )


def _otherwise(server: Server) -> str:
    return f"or set DISPYTCH_TEST_{server.name.upper()}_URL to the address of a server that runs already"
