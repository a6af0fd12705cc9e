"""Starting, finding and stopping brokers, with all that is known of them in one folder.

::

    .brokers/
    ├── lock
    ├── redis/                  started by ``up``: broker.json, server.log and the server's own files
    └── sessions/<pid>-<any>/   started by ``running``: owner.json, and a folder for each broker as above
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from . import _docker, _process
from ._catalog import SERVERS
from ._errors import BrokersError
from ._install import find_or_install
from ._ports import free_port
from ._servers import LOOPBACK, Server

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """A broker that this command started: as a process (``pid``, ``born``) or as a container (``project``)."""

    name: str
    url: str
    port: int
    pid: int | None = None
    born: str | None = None
    project: str | None = None


@dataclass(frozen=True)
class Status:
    name: str
    state: Literal["running", "stopped", "external"]
    url: str | None = None
    pid: int | None = None


def server_named(name: str) -> Server:
    try:
        return SERVERS[name]
    except KeyError:
        raise BrokersError(f"There is no broker {name!r}: choose from {', '.join(SERVERS)}.") from None


def external_url(name: str) -> str | None:
    """The address of a server that somebody else runs."""
    return os.environ.get(f"DISPYTCH_TEST_{name.upper()}_URL") or None


def without_password(url: str) -> str:
    """The address as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1)).geturl()


class Manager:
    def __init__(self, folder: Path | None = None) -> None:
        """Keep to ``folder``: by default DISPYTCH_BROKERS_DIR, or .brokers in the project."""
        self.folder = (folder or Path(os.environ.get("DISPYTCH_BROKERS_DIR") or PROJECT / ".brokers")).absolute()

    def up(self, name: str, *, install: bool = False, docker: bool = False, port: int | None = None) -> str:
        """Start the broker unless it runs, and return its address; it stays until ``down``."""
        server = server_named(name)
        if (url := external_url(name)) is not None:
            return url
        port = port or _port_from_environment(name)
        with self._locked():
            running = self._standing(server)
            if running is None:
                folder = self.folder / name
                running = _start_container(server, folder, port) if docker else _start(server, folder, port, install)
            elif port is not None and running.port != port:
                raise BrokersError(
                    f"{name} runs on port {running.port} already, not on {port}: "
                    f"run `python -m tests.brokers down {name}` first."
                )
            return running.url

    def down(self, name: str) -> bool:
        """Stop the broker if ``up`` started it; whether there was one."""
        server = server_named(name)
        with self._locked():
            self._sweep()
            recorded = _recorded(self.folder / name)
            if recorded is None:
                return False
            was_alive = _is_alive(server, recorded)
            _stop(server, recorded)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            return was_alive

    def status(self, name: str) -> Status:
        server = server_named(name)
        if (url := external_url(name)) is not None:
            return Status(name, "external", url)
        running = self._standing(server)
        if running is None:
            return Status(name, "stopped")
        return Status(name, "running", running.url, running.pid)

    @contextmanager
    def running(self, *names: str, install: bool = False) -> Iterator[dict[str, str]]:
        """The addresses of running brokers, by name.

        One that somebody else runs, or that ``up`` started, is used and left alone. Any other is started on a free
        port for this context only, so that test runs side by side do not stop each other's brokers.
        """
        with self._session() as session:
            urls: dict[str, str] = {}
            own: list[tuple[Server, Running]] = []
            try:
                for name in dict.fromkeys(names):
                    server = server_named(name)
                    url = self.status(name).url
                    if url is None:
                        with self._locked():  # two runs must not install the same package at once
                            find_or_install(server, install=install)
                        started = _start(server, session / name, None, install=False)
                        own.append((server, started))
                        url = started.url
                    urls[name] = url
                yield urls
            finally:
                for server, started in reversed(own):
                    _stop(server, started)

    def _standing(self, server: Server) -> Running | None:
        recorded = _recorded(self.folder / server.name)
        return recorded if recorded is not None and _is_alive(server, recorded) else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _session(self) -> Iterator[Path]:
        sessions = self.folder / "sessions"
        with self._locked():
            self._sweep()
            sessions.mkdir(exist_ok=True)
            session = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=sessions))
            owner = {"pid": os.getpid(), "born": _process.birth(os.getpid())}
            (session / "owner.json").write_text(json.dumps(owner))
        try:
            yield session
        finally:
            shutil.rmtree(session, ignore_errors=True)

    def _sweep(self) -> None:
        """Stop what was left by test runs that were killed."""
        for session in (self.folder / "sessions").glob("*-*"):
            try:
                owner = json.loads((session / "owner.json").read_text())
            except FileNotFoundError:
                owner = None  # killed before it could start anything
            if owner is not None and _process.runs(owner["pid"], owner["born"]):
                continue
            for name, server in SERVERS.items():
                if (recorded := _recorded(session / name)) is not None:
                    _stop(server, recorded)
            shutil.rmtree(session, ignore_errors=True)


@contextmanager
def started(server: Server, folder: Path, port: int | None = None) -> Iterator[Running]:
    """A broker that a test configures, kills or restarts as it likes: what it keeps is in ``folder``."""
    running = _start(server, folder, port, install=False)
    try:
        yield running
    finally:
        _stop(server, running)


def _start(server: Server, folder: Path, port: int | None, install: bool) -> Running:
    program = find_or_install(server, install=install)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "server.log"
    attempts = 1 if port is not None else 3  # a port that was free when it was chosen may be taken a moment later
    while True:
        attempts -= 1
        chosen = port or free_port()
        server.prepare(folder, chosen)
        pid = _process.spawn([program, *server.arguments(folder, chosen)], server.environment(folder, chosen), log)
        running = Running(server.name, server.url(chosen), chosen, pid=pid, born=_process.birth(pid))
        try:
            _write(folder, running)
            if _becomes_ready(server, running):
                return running
        except BaseException:
            _abandon(server, running, folder)
            raise
        ended = _process.birth(pid) is None
        _abandon(server, running, folder)
        if not (ended and attempts):
            break
    how = "ended at once" if ended else f"did not answer within {server.start_seconds:g} s"
    last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise BrokersError(
        f"{server.program} {how} on {LOOPBACK}:{chosen}. The end of its log:\n{last_lines}\n"
        "Correct what it complains of; if the port is taken, choose another one with --port or leave it out."
    )


def _start_container(server: Server, folder: Path, port: int | None) -> Running:
    port = port or free_port()
    project = _docker.project_name(folder.parent)
    running = Running(server.name, server.url(port), port, project=project)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _docker.up(server.name, port, project)
        if not _becomes_ready(server, running):
            raise BrokersError(
                f"The {server.name} container does not answer on {LOOPBACK}:{port}: "
                f"see `docker compose --project-name {project} logs {server.name}`."
            )
    except BaseException:
        with suppress(BrokersError):  # what went wrong first is what to report
            _docker.down(server.name, project)
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _write(folder, running)
    return running


def _becomes_ready(server: Server, running: Running) -> bool:
    deadline = time.monotonic() + server.start_seconds
    while time.monotonic() < deadline:
        if running.pid is not None and _process.birth(running.pid) is None:
            return False
        try:
            if server.answers(running.port, running.pid):
                return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


def _stop(server: Server, running: Running) -> None:
    if running.project is not None:
        _docker.down(server.name, running.project)
    elif running.pid is not None:
        _process.stop(running.pid, running.born, server.stop_seconds)


def _abandon(server: Server, running: Running, folder: Path) -> None:
    """Stop it and forget it, but leave its log."""
    _stop(server, running)
    (folder / "broker.json").unlink(missing_ok=True)


def _write(folder: Path, running: Running) -> None:
    new = folder / "broker.json.new"
    new.write_text(json.dumps(asdict(running), indent=2) + "\n")
    new.rename(folder / "broker.json")


def _recorded(folder: Path) -> Running | None:
    try:
        return Running(**json.loads((folder / "broker.json").read_text()))
    except FileNotFoundError:
        return None


def _is_alive(server: Server, recorded: Running) -> bool:
    """Whether it is still there: the process that was started, or a container that answers."""
    if recorded.pid is not None:
        return _process.runs(recorded.pid, recorded.born)
    try:
        return server.answers(recorded.port, None)
    except OSError:
        return False


def _port_from_environment(name: str) -> int | None:
    variable = f"DISPYTCH_{name.upper()}_PORT"
    value = os.environ.get(variable)
    if not value:
        return None
    return parse_port(value, variable)


def parse_port(value: str, where: str) -> int:
    if value.isascii() and value.isdigit() and 0 < int(value) < 65536:
        return int(value)
    raise BrokersError(f"{where} is {value!r}: give a port number from 1 to 65535.")


def names_or_all(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        server_named(name)
    return names or tuple(SERVERS)


def parse_ports(options: Sequence[str]) -> Mapping[str, int]:
    """``NAME=PORT`` options as a mapping."""
    ports: dict[str, int] = {}
    for option in options:
        name, separator, value = option.partition("=")
        if not separator:
            raise BrokersError(f"--port {option}: give it as NAME=PORT, for instance redis=6379.")
        ports[server_named(name).name] = parse_port(value, f"The port of {name}")
    return ports
