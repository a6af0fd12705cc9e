"""The ``python -m tests.brokers`` command and its Python side, against real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import brokers
from tests.brokers import _process
from tests.brokers._install import find_or_install_tool
from tests.conftest import in_ci, tool_of

PROJECT = Path(__file__).parents[1]


class Command:
    """The command with a state folder and an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("DISPYTCH_")}
        self.environment["DISPYTCH_BROKERS_DIR"] = str(folder)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.brokers", *arguments],
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def __call__(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    def error(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 1, done.stdout
        return done.stderr

    def record(self, name: str = "redis") -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / name / "broker.json").read_text())
        return record


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path / "brokers")
    yield command
    command.run("down")


@pytest.fixture
def bare_path(tmp_path: Path, command: Command) -> Path:
    """A folder that is the command's whole PATH, with ``env`` and a ``sudo`` that asks nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "env").symlink_to("/usr/bin/env")
    program(folder / "sudo", 'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"')
    command.environment["PATH"] = str(folder)
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def port_of(url: str) -> int:
    return int(url.strip().rpartition(":")[2].partition("/")[0])


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def ask(url: str, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) as connection:
        connection.sendall(request + b"\r\n")
        return connection.recv(4096)


def is_refused(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port_of(url))) != 0


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("redis_server")
class TestCommand:
    def test_up_status_url_down(self, command: Command) -> None:
        assert command("status", "redis") == "redis: stopped\n"
        up = command("up", "redis")
        url = command("url", "redis").strip()
        assert up == command("status", "redis") == f"redis: running ({url}, pid {command.record()['pid']})\n"
        assert ask(url, b"PING") == b"+PONG\r\n"
        assert command("down", "redis") == "redis: stopped\n"
        assert is_refused(url)
        assert command("status", "redis") == "redis: stopped\n"

    def test_up_and_down_twice(self, command: Command) -> None:
        assert command("up", "redis") == command("up", "redis")
        assert command("down", "redis") == "redis: stopped\n"
        assert command("down", "redis") == "redis: was not running\n"

    def test_binds_loopback_and_persists_nothing(self, command: Command) -> None:
        command("up", "redis")
        url = command("url", "redis")
        assert b"\r\n127.0.0.1\r\n" in ask(url, b"CONFIG GET bind")
        assert ask(url, b"CONFIG GET save") == b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"
        assert b"\r\nno\r\n" in ask(url, b"CONFIG GET appendonly")

    def test_port_by_option_and_by_environment(self, command: Command) -> None:
        first, second = free_ports()
        command.environment["DISPYTCH_REDIS_PORT"] = str(first)
        command("up", "redis", "--port", f"redis={second}")
        assert port_of(command("url", "redis")) == second
        assert f"runs on port {second} already, not on {first}" in command.error("up", "redis")
        command("down")
        command("up", "redis")
        assert port_of(command("url", "redis")) == first

    def test_taken_port_is_an_error_that_says_so(self, command: Command) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            error = command.error("up", "redis", "--port", f"redis={port}")
        assert "Address already in use" in error
        assert "choose another one with --port" in error
        assert command("status", "redis") == "redis: stopped\n"
        assert not (command.folder / "redis" / "broker.json").exists()

    def test_down_leaves_a_process_that_only_has_the_same_pid(self, command: Command) -> None:
        command("up", "redis")
        record = command.record()
        pid, born = record["pid"], record["born"]
        record["born"] = "another"
        (command.folder / "redis" / "broker.json").write_text(json.dumps(record))
        assert command("down", "redis") == "redis: was not running\n"
        assert _process.birth(pid) == born
        _process.stop(pid, born, patience=10)

    def test_a_process_that_ended_before_it_was_known_does_not_run(self, command: Command) -> None:
        command("up", "redis")
        command("down")
        record = {"name": "redis", "url": "redis://127.0.0.1:1/0", "port": 1, "pid": 2**22 + 1, "born": None}
        (command.folder / "redis").mkdir()
        (command.folder / "redis" / "broker.json").write_text(json.dumps(record))
        assert command("status", "redis") == "redis: stopped\n"

    def test_up_after_the_server_was_killed(self, command: Command) -> None:
        command("up", "redis")
        os.kill(command.record()["pid"], signal.SIGKILL)
        eventually(lambda: command("status", "redis") == "redis: stopped\n")
        command("up", "redis")
        assert ask(command("url", "redis"), b"PING") == b"+PONG\r\n"


@pytest.mark.usefixtures("kafka_server")
class TestKafka:
    def test_up_status_url_down(self, command: Command) -> None:
        up = command("up", "kafka")
        url = command("url", "kafka").strip()
        record = command.record("kafka")
        assert (
            up
            == command("up", "kafka")
            == command("status", "kafka")
            == f"kafka: running ({url}, pid {record['pid']})\n"
        )
        assert url == f"kafka://127.0.0.1:{record['port']}"
        server = brokers.Kafka()
        assert server.answers(record["port"], None)
        assert server.version(command.folder / "kafka") == "4.1.0"
        settings = (command.folder / "kafka" / "server.properties").read_text()
        assert set(re.findall(r"://([\w.]+):", settings)) == {"127.0.0.1"}
        assert command("down", "kafka") == "kafka: stopped\n"
        assert is_refused(url)
        assert command("status", "kafka") == "kafka: stopped\n"
        assert command("down", "kafka") == "kafka: was not running\n"

    def test_a_restart_keeps_what_it_holds_and_another_on_the_port_is_not_taken_for_it(self, tmp_path: Path) -> None:
        kept = tmp_path / "first" / "data" / "meta.properties"
        with brokers.started(brokers.Kafka(), tmp_path / "first") as one:
            cluster = kept.read_text()
            with (
                pytest.raises(brokers.BrokersError, match="Address already in use"),
                brokers.started(brokers.Kafka(), tmp_path / "second", one.port),
            ):
                pass
        with brokers.started(brokers.Kafka(), tmp_path / "first", one.port):
            assert kept.read_text() == cluster

    def test_without_its_jars_the_error_says_how(self, command: Command, tmp_path: Path) -> None:
        command.environment["XDG_CACHE_HOME"] = str(tmp_path)
        error = command.error("up", "kafka")
        assert f"there is no Kafka 4.1.0 in {tmp_path}" in error
        assert "up kafka --install" in error


@pytest.mark.usefixtures("rabbitmq_server")
class TestRabbitMQ:
    def test_up_and_down_leave_nothing_behind(self, command: Command) -> None:
        command("up", "rabbitmq")
        pid, url = command.record("rabbitmq")["pid"], command("url", "rabbitmq").strip()
        assert url == f"amqp://guest:guest@127.0.0.1:{port_of(url)}/"
        assert command("status", "rabbitmq") == (f"rabbitmq: running ({url.replace(':guest@', ':***@')}, pid {pid})\n")
        properties = brokers.server_properties(port_of(url))
        assert properties["product"] == "RabbitMQ"
        assert properties["version"].split(".")[0].isdigit()
        mine = descendants_of_session(pid)
        assert mine[pid] == "beam.smp"
        assert "epmd" not in mine.values()
        assert command("down", "rabbitmq") == "rabbitmq: stopped\n"
        assert is_refused(url)
        eventually(lambda: not any(_process.birth(process) for process in mine))

    def test_listens_on_loopback_only(self, command: Command) -> None:
        command("up", "rabbitmq")
        log = (command.folder / "rabbitmq" / "server.log").read_text()
        assert f"started TCP listener on 127.0.0.1:{port_of(command('url', 'rabbitmq'))}" in log
        assert "[::]" not in log
        listening = Path(f"/proc/{command.record('rabbitmq')['pid']}/net/tcp6")
        if listening.exists():
            inodes = open_sockets(command.record("rabbitmq")["pid"])
            assert not any(line.split()[9] in inodes for line in listening.read_text().splitlines()[1:])

    def test_two_at_once(self, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        with brokers.started(brokers.RabbitMQ(), first) as one, brokers.started(brokers.RabbitMQ(), second) as two:
            assert brokers.server_properties(one.port) != brokers.server_properties(two.port)

    def test_another_server_on_the_port_is_not_taken_for_it(self, command: Command, tmp_path: Path) -> None:
        command("up", "rabbitmq")
        port = port_of(command("url", "rabbitmq"))
        with (
            pytest.raises(brokers.BrokersError, match="eaddrinuse"),
            brokers.started(brokers.RabbitMQ(), tmp_path / "second", port),
        ):
            pass

    def test_what_does_not_speak_amqp_is_not_ready(self) -> None:
        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"AMQP\0\0\x09\x01")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = Thread(target=answer)
            thread.start()
            with pytest.raises(OSError, match="does not speak AMQP"):
                brokers.server_properties(listener.getsockname()[1])
            thread.join()


def descendants_of_session(session: int) -> dict[int, str]:
    """The processes that a server started, itself included, and their names."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    found = {session: next(name for pid, _, name in rows if int(pid) == session)}
    while more := {int(pid): name for pid, parent, name in rows if int(parent) in found and int(pid) not in found}:
        found |= more
    return found


def open_sockets(pid: int) -> set[str]:
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}


class TestErrors:
    def test_unknown_name(self, command: Command) -> None:
        assert (
            command.error("up", "rediss") == "error: There is no broker 'rediss': choose from redis, kafka, rabbitmq.\n"
        )

    def test_url_of_a_stopped_broker(self, command: Command) -> None:
        assert "python -m tests.brokers up redis" in command.error("url", "redis")

    @pytest.mark.parametrize("option", ["6379", "redis=", "redis=0", "redis=65536", "redis=six"])
    def test_bad_port(self, command: Command, option: str) -> None:
        error = command.error("up", "redis", "--port", option)
        assert "give it as NAME=PORT" in error or "give a port number" in error


class TestExternal:
    URL = "redis://user:secret@127.0.0.1:1/3"

    def test_external_server_is_used_and_nothing_is_started(self, command: Command) -> None:
        command.environment["DISPYTCH_TEST_REDIS_URL"] = self.URL
        shown = "redis: external (redis://user:***@127.0.0.1:1/3, from DISPYTCH_TEST_REDIS_URL)\n"
        assert command("up", "redis") == command("status", "redis") == shown
        assert command("url", "redis") == self.URL + "\n"
        assert not (command.folder / "redis").exists()

    def test_running_yields_the_external_address(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DISPYTCH_TEST_REDIS_URL", self.URL)
        with brokers.Manager(tmp_path).running("redis") as urls:
            assert urls == {"redis": self.URL}


@pytest.mark.usefixtures("redis_server")
class TestRunning:
    @pytest.fixture(autouse=True)
    def _no_external_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPYTCH_TEST_REDIS_URL", raising=False)

    def test_stops_what_it_started(self, tmp_path: Path) -> None:
        with brokers.Manager(tmp_path).running("redis") as urls:
            assert ask(urls["redis"], b"PING") == b"+PONG\r\n"
        assert is_refused(urls["redis"])
        assert list((tmp_path / "sessions").iterdir()) == []

    def test_two_at_once_have_a_server_each(self, tmp_path: Path) -> None:
        manager = brokers.Manager(tmp_path)
        with manager.running("redis") as first:
            with manager.running("redis") as second:
                assert first != second
            assert ask(first["redis"], b"PING") == b"+PONG\r\n"

    def test_reuses_what_up_started_and_leaves_it(self, command: Command) -> None:
        command("up", "redis")
        url = command("url", "redis").strip()
        with brokers.Manager(command.folder).running("redis") as urls:
            assert urls == {"redis": url}
        assert ask(url, b"PING") == b"+PONG\r\n"

    def test_what_a_killed_run_left_is_stopped_by_down(self, command: Command) -> None:
        code = (
            "import time\n"
            "from tests import brokers\n"
            "with brokers.running('redis') as urls:\n"
            "    print(urls['redis'], flush=True)\n"
            "    time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=PROJECT, env=command.environment, stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            url = run.stdout.readline()
            command("down")
            assert ask(url, b"PING") == b"+PONG\r\n"  # its owner still runs
            run.kill()
        assert ask(url, b"PING") == b"+PONG\r\n"
        command("down")
        assert is_refused(url)


def test_a_port_is_given_to_one_process_only() -> None:
    ports = brokers.free_port(), brokers.free_port()
    code = "import sys; from tests.brokers import _ports; print([_ports._reserve(int(one)) for one in sys.argv[1:]])"
    command = [sys.executable, "-c", code, *map(str, ports), "1"]
    for _ in range(2):  # the one that nobody has is free again once whoever took it has ended
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
        assert done.stdout == "[False, False, True]\n"


@pytest.mark.skipif(shutil.which("ps") is None and not in_ci(), reason="ps is not installed")
def test_processes_are_told_apart_without_proc() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        born = _process._birth_from_ps(process.pid)
        assert born is not None
        assert _process._birth_from_ps(process.pid) == born
        process.kill()
    assert _process._birth_from_ps(process.pid) is None


class TestInstall:
    def test_without_install_the_error_says_how(self, command: Command, bare_path: Path) -> None:
        error = command.error("up", "redis")
        assert "redis-server is not on PATH" in error
        assert "up redis --install" in error
        assert "DISPYTCH_TEST_REDIS_URL" in error

    def test_not_on_debian(self, command: Command, bare_path: Path) -> None:
        error = command.error("up", "redis", "--install")
        assert "there is no apt-get here" in error
        assert "this system's own package manager" in error

    def test_neither_root_nor_sudo(self, bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (bare_path / "sudo").unlink()
        program(bare_path / "apt-get", "exit 0")
        monkeypatch.setenv("PATH", str(bare_path))
        monkeypatch.delenv("DISPYTCH_TEST_REDIS_URL", raising=False)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(brokers.BrokersError, match="As root, run `apt-get install redis-server`"):
            brokers.Manager(tmp_path / "brokers").up("redis", install=True)

    def test_sudo_does_not_wait_for_a_password_without_a_terminal(
        self, bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program(bare_path / "sudo", f'echo "sudo $*" >>{tmp_path}/log; exit 1')
        program(bare_path / "apt-get", "exit 0")
        monkeypatch.setenv("PATH", str(bare_path))
        monkeypatch.delenv("DISPYTCH_TEST_REDIS_URL", raising=False)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(brokers.BrokersError, match="Run it by hand"):
            brokers.Manager(tmp_path / "brokers").up("redis", install=True)
        assert (tmp_path / "log").read_text().startswith("sudo -n env DEBIAN_FRONTEND=noninteractive ")

    def test_install_updates_then_installs_then_starts(
        self, command: Command, bare_path: Path, tmp_path: Path, redis_server: str
    ) -> None:
        log = tmp_path / "apt.log"
        link = f"/bin/ln -s {redis_server} {bare_path}/redis-server"
        program(bare_path / "apt-get", f'echo "$DEBIAN_FRONTEND: $@" >>{log}\n[ "$1" = update ] || {link}')
        command("up", "redis", "--install")
        assert ask(command("url", "redis"), b"PING") == b"+PONG\r\n"
        assert log.read_text().splitlines() == [
            "noninteractive: update",
            "noninteractive: install --yes --no-install-recommends redis-server",
        ]
        command("down")
        command("up", "redis", "--install")
        assert len(log.read_text().splitlines()) == 2

    def test_failed_install_shows_what_apt_get_said(self, command: Command, bare_path: Path) -> None:
        program(bare_path / "apt-get", "echo E: Unable to locate package; exit 100")
        error = command.error("up", "redis", "--install")
        assert "ended with 100" in error
        assert "E: Unable to locate package" in error

    def test_a_tool_that_is_in_no_folder_of_the_path(
        self, bare_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, places = tmp_path / "apt.log", tmp_path / "lib"
        tool = brokers.Tool("sqlserver", "sql", elsewhere=f"{places}/*/bin/sqlserver", before=f"echo before >>{log}")
        make = f"/bin/mkdir -p {places}/9/bin {places}/15/bin; echo >{places}/9/bin/sqlserver"
        program(bare_path / "apt-get", f'echo "$@" >>{log}\n{make}; echo >{places}/15/bin/sqlserver')
        (places / "17" / "bin").mkdir(parents=True)  # of a client
        monkeypatch.setenv("PATH", str(bare_path))
        with pytest.raises(brokers.MissingServerError, match="pytest --install-brokers"):
            find_or_install_tool(tool, install=False)
        for _ in range(2):
            assert find_or_install_tool(tool, install=True) == str(places / "15" / "bin" / "sqlserver")
        assert log.read_text().splitlines() == ["before", "update", "install --yes --no-install-recommends sql"]

    @pytest.mark.parametrize(
        ("ci", "option", "fails"), [("", None, False), ("true", None, True), ("", "--require", True)]
    )
    def test_postgresql_is_missed_as_the_brokers_are(
        self, monkeypatch: pytest.MonkeyPatch, ci: str, option: str | None, fails: bool
    ) -> None:
        monkeypatch.setitem(brokers.TOOLS, "postgres", brokers.Tool("no-such-server", "postgresql"))
        monkeypatch.setenv("CI", ci)
        config = cast(pytest.Config, SimpleNamespace(getoption=f"{option}-brokers".__eq__))
        with pytest.raises(pytest.fail.Exception if fails else pytest.skip.Exception, match="pytest --install-brokers"):
            tool_of(config, "postgres")


class TestDocker:
    def test_up_waits_for_the_container_and_down_removes_it(
        self, command: Command, bare_path: Path, tmp_path: Path, redis_server: str
    ) -> None:
        log = tmp_path / "docker.log"
        listen = (
            f'{redis_server} --bind 127.0.0.1 --port "$DISPYTCH_REDIS_PORT" --save "" --daemonize yes --dir {tmp_path}'
        )
        program(bare_path / "docker", f'echo "$@" >>{log}\ncase "$*" in *" up "*) {listen};; esac')
        command("up", "redis", "--docker")
        project = command.record()["project"]
        url = command("url", "redis")
        assert command("up", "redis", "--docker") == f"redis: running ({url.strip()})\n"
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) as connection:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            assert connection.recv(1) == b""
        assert command("status", "redis") == "redis: stopped\n"
        assert command("down", "redis") == "redis: was not running\n"
        compose = f"compose --project-name {project} --file {PROJECT / 'docker-compose.yml'}"
        assert log.read_text().splitlines() == [
            f"{compose} up --detach --wait redis",
            f"{compose} rm --stop --force --volumes redis",
        ]

    def test_without_docker(self, command: Command, bare_path: Path) -> None:
        assert "install Docker, or leave out --docker" in command.error("up", "redis", "--docker")

    def test_without_an_engine(self, command: Command, bare_path: Path) -> None:
        program(bare_path / "docker", "echo Cannot connect to the Docker daemon; exit 1")
        error = command.error("up", "redis", "--docker")
        assert "Cannot connect to the Docker daemon" in error
        assert "docker info" in error
        assert command("status", "redis") == "redis: stopped\n"


def test_redis_url_is_a_running_redis(redis_url: str) -> None:
    if "DISPYTCH_TEST_REDIS_URL" not in os.environ:
        assert ask(redis_url, b"PING") == b"+PONG\r\n"
