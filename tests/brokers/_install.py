"""Finding server programs, and installing them where apt-get can."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from ._errors import BrokersError, MissingServerError
from ._servers import Server
from ._tools import Tool


def find_or_install(server: Server, *, install: bool) -> str:
    """The path of the server's program."""
    if (missing := server.missing()) is not None:
        if not install:
            raise MissingServerError(
                f"{missing}. Install it with `python -m tests.brokers up {server.name} --install` or "
                f"`pytest --install-brokers` (Debian and Ubuntu, as root or with sudo), {_otherwise(server)}."
            )
        _install(server)
    found = server.find()
    if found is None:
        raise BrokersError(
            f"The package {server.debian_package} was installed, yet {server.program} is not on PATH: "
            f"run `dpkg -L {server.debian_package}` to see where it is, and add that folder to PATH."
        )
    return found


def _install(server: Server) -> None:
    if packages := server.missing_packages():
        _apt_get_install(server.program, packages, _otherwise(server))
    server.fetch()


def find_or_install_tool(tool: Tool, *, install: bool) -> str:
    """The path of a program that is no broker, such as another client."""
    if (found := tool.find()) is not None:
        return found
    otherwise = f"or put {tool.program} on PATH in another way"
    if not install:
        raise MissingServerError(
            f"{tool.program} is not on PATH. Install it with `pytest --install-brokers` (Debian and Ubuntu, as root or "
            f"with sudo), {otherwise}."
        )
    _apt_get_install(tool.program, [tool.package], otherwise, tool.before)
    return tool.find() or tool.program


def _apt_get_install(program: str, packages: Sequence[str], otherwise: str, before: str = "") -> None:
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise BrokersError(
            f"Cannot install {program}: there is no apt-get here. Install it with this system's own package "
            f"manager, {otherwise}."
        )
    as_root = _as_root(program, packages, otherwise)
    if before:
        _run([*as_root, "/bin/sh", "-c", before], program, otherwise)
    command = [*as_root, apt_get]
    _run([*command, "update"], program, otherwise)
    _run([*command, "install", "--yes", "--no-install-recommends", *packages], program, otherwise)


def _as_root(program: str, packages: Sequence[str], otherwise: str) -> Sequence[str]:
    quietly = ("env", "DEBIAN_FRONTEND=noninteractive")
    if os.geteuid() == 0:
        return quietly
    sudo = shutil.which("sudo")
    if sudo is None:
        raise BrokersError(
            f"Cannot install {program}: not root, and there is no sudo. "
            f"As root, run `apt-get install {' '.join(packages)}`, {otherwise}."
        )
    interactive = sys.stdin is not None and sys.stdin.isatty()
    return (sudo, *(() if interactive else ("-n",)), *quietly)


def _run(command: Sequence[str], program: str, otherwise: str) -> None:
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
            f"Cannot install {program}: `{' '.join(command)}` ended with {done.returncode}.\n"
            f"{done.stdout.strip()[-2000:]}\nRun it by hand to see what is wrong, {otherwise}."
        )


def _otherwise(server: Server) -> str:
    return f"or set DISPYTCH_TEST_{server.name.upper()}_URL to the address of a server that runs already"
