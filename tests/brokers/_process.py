"""Processes that outlive the command that started them, told apart from later ones with the same pid."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def spawn(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Start ``command`` in a session of its own, so that Ctrl+C here does not reach it, with its output in ``log``."""
    to_log = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    return os.posix_spawn(
        command[0],
        list(command),
        {**os.environ, **environment},
        file_actions=(
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), to_log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ),
        setsid=True,
        setsigdef=(signal.SIGPIPE,),
    )


def birth(pid: int) -> str | None:
    """What tells this process from any other that ever had the same pid; None when it does not run."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # a child of ours that ended would stay as a zombie
    if Path("/proc/self/stat").exists():
        return _birth_from_proc(pid)
    return _birth_from_ps(pid)


def runs(pid: int, born: str | None) -> bool:
    """Whether it is still the process that was born then; never so for one that had ended before that was known."""
    return born is not None and birth(pid) == born


def stop(pid: int, born: str | None, patience: float) -> None:
    """End the process, politely first, unless it has ended already."""
    if not runs(pid, born):
        return
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not runs(pid, born):
                return
            time.sleep(0.02)


def _birth_from_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the program's name comes before, and may hold anything
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{ticks}"


def _birth_from_ps(pid: int) -> str | None:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    output = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    state, _, started = output.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else " ".join(started.split())
