"""Brokers as containers, from docker-compose.yml."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ._errors import BrokersError

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"


def project_name(folder: Path) -> str:
    """A name of its own for each state folder, so that two checkouts do not share containers."""
    return f"dispytch-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def up(name: str, port: int, project: str) -> None:
    _compose(project, ("up", "--detach", "--wait", name), {f"DISPYTCH_{name.upper()}_PORT": str(port)})


def down(name: str, project: str) -> None:
    _compose(project, ("rm", "--stop", "--force", "--volumes", name), {})


def _compose(project: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
    docker = shutil.which("docker")
    if docker is None:
        raise BrokersError("There is no docker command on PATH: install Docker, or leave out --docker.")
    command = [docker, "compose", "--project-name", project, "--file", str(COMPOSE_FILE), *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BrokersError(
            f"`{' '.join(command)}` ended with {done.returncode}.\n{done.stdout.strip()[-2000:]}\n"
            "Check that the Docker engine runs (`docker info`), or leave out --docker."
        )
