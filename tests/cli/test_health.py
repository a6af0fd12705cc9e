"""`dispytch run --http` and `--heartbeat`, alone and with workers, and `dispytch health`."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import LOOPS, Running, run, running
from tests.support import PATIENCE, blocking_until, closed_port


def ask(port: int, page: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body; 0 while nobody listens."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", page)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except ConnectionError:
        return 0, ""
    finally:
        connection.close()


def until_status(one: Running, port: int, page: str, status: int) -> Any:
    found: list[str] = []

    def answers() -> bool:
        told, body = ask(port, page)
        found[:] = [body]
        return told == status or one.process.poll() is not None

    blocking_until(answers)
    assert one.process.poll() is None, one.said
    return json.loads(found[0])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_tells_how_it_is(folder: Path, loop: str) -> None:
    port = closed_port()
    beat = folder / "beat"
    arguments = ("run", "app:dispatcher", "--loop", loop, "--http", str(port), "--heartbeat", str(beat))
    with running(folder, *arguments, JOB="wait") as one:
        until_status(one, port, "/readyz", 200)
        blocking_until(lambda: any(line.startswith("began") for line in one.log))
        url = f"http://127.0.0.1:{port}"
        for words in ([url], [url, "--ready"], [f"{url}/livez"], [str(beat)]):
            done = run(folder, "health", *words, "--timeout", str(PATIENCE))
            assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
        assert 'dispytch_in_flight{dispatcher="1"} 1.0' in ask(port, "/metrics")[1]
        one.signal(signal.SIGTERM)
        one.until_said("draining")
        assert until_status(one, port, "/readyz", 503)["reasons"] == ["the dispatcher is draining"]
        done = run(folder, "health", url, "--ready", "--timeout", str(PATIENCE))
        assert (done.returncode, done.stderr) == (4, "Error: the dispatcher is draining\n")
        assert run(folder, "health", url, "--timeout", str(PATIENCE)).returncode == 0
        (folder / "go").touch()
        assert one.code() == 0
    assert not beat.exists()
    done = run(folder, "health", url)
    assert done.returncode == 4
    assert f"127.0.0.1, port {port}, does not answer: " in done.stderr
    done = run(folder, "health", str(beat))
    assert (done.returncode, done.stderr) == (
        4,
        f"Error: there is no heartbeat {beat}: the service has not started, or has ended\n",
    )


def test_workers_answer_by_their_supervisor(folder: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = closed_port()
    beat = folder / "beat"
    arguments = ("run", "app:dispatcher", "--workers", "2", "--http", f"127.0.0.1:{port}", "--heartbeat", str(beat))
    with running(folder, *arguments, JOB="wait") as one:
        assert {worker["worker"] for worker in until_status(one, port, "/readyz", 200)["workers"]} == {1, 2}
        blocking_until(lambda: sum(line.startswith("began") for line in one.log) == 2)
        assert run(folder, "health", str(beat)).returncode == 0
        page = ask(port, "/metrics")[1]
        for worker in ("1", "2"):
            assert f'dispytch_in_flight{{dispatcher="1",worker="{worker}"}} 1.0' in page
        assert page.count("# TYPE dispytch_in_flight gauge") == 1

        # One that is being started is no reason to start all of them again; one that does not answer is.
        pid = next(worker["pid"] for worker in json.loads(ask(port, "/livez")[1])["workers"] if worker["worker"] == 1)
        os.kill(pid, signal.SIGKILL)
        one.until_said("starting it again")
        assert ask(port, "/livez")[0] == 200
        until_status(one, port, "/readyz", 200)
        pid = next(worker["pid"] for worker in json.loads(ask(port, "/livez")[1])["workers"] if worker["worker"] == 2)
        os.kill(pid, signal.SIGSTOP)
        try:
            told = until_status(one, port, "/livez", 503)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert told["reasons"] == ["worker 2 has not answered for 2 s"]
        until_status(one, port, "/livez", 200)

        one.signal(signal.SIGTERM)
        one.until_said("SIGTERM: draining", times=2)
        assert "worker 1: the dispatcher is draining" in until_status(one, port, "/readyz", 503)["reasons"]
        (folder / "go").touch()
        assert one.code() == 0
    assert not beat.exists()


def test_it_is_not_ready_until_a_worker_that_died_is_back(folder: Path) -> None:
    port = closed_port()
    with running(folder, "run", "app:dispatcher", "--workers", "2", "--http", str(port)) as one:
        told = until_status(one, port, "/readyz", 200)
        (folder / "app.py").write_text("raise SystemExit(9)")  # from now on none comes to anything
        os.kill(told["workers"][0]["pid"], signal.SIGKILL)
        one.until_said("starting it again")
        while one.said.count("starting it again") < 3:  # though there is no process most of the time
            status, body = ask(port, "/readyz")
            assert (status, json.loads(body)["reasons"]) == (503, ["worker 1 is being started"])


def test_it_answers_while_a_change_has_it_start_again(folder: Path) -> None:
    port = closed_port()
    with running(folder, "run", "app:dispatcher", "--reload", "--http", str(port), JOB="wait") as one:
        until_status(one, port, "/readyz", 200)
        app = folder / "app.py"
        app.write_text(app.read_text() + "\n# changed\n")
        one.until_said("SIGTERM: draining")
        until_status(one, port, "/readyz", 503)
        assert ask(port, "/livez")[0] == 200
        (folder / "go").touch()
        until_status(one, port, "/readyz", 200)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use(folder: Path, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(folder, "run", "app:dispatcher", "--http", str(port), "--workers", workers)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == [
        f"Error: health cannot be told at 127.0.0.1, port {port}: it is in use; choose another port, or 0 for any"
    ]
    assert not (folder / "log").exists()  # nothing was started


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("eighty", "give a port, or an address and a port"),
        ("::1:8080", "an IPv6 address is in brackets"),
        ("127.0.0.1:70000", "give a port, or an address and a port"),
    ],
)
def test_an_address_that_is_none(folder: Path, given: str, text: str, workers: str) -> None:
    done = run(folder, "run", "app:dispatcher", "--http", given, "--workers", workers)
    assert done.returncode == 2
    assert text in done.stderr
    assert len([line for line in done.stderr.splitlines() if "Error" in line]) == 1


def test_ipv6(folder: Path) -> None:
    with running(folder, "run", "app:dispatcher", "--http", "[::1]:0") as one:
        one.until_said("Health is told at http://[::1]:")
        port = int(one.said.partition("http://[::1]:")[2].partition(".")[0])
        assert ask(port, "/livez", "::1")[0] == 200
        assert run(folder, "health", f"http://[::1]:{port}", "--timeout", str(PATIENCE)).returncode == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_extra_it_says_what_to_install(folder: Path, workers: str) -> None:
    (folder / "h11.py").write_text("raise ImportError('not installed')")
    arguments = ("run", "app:dispatcher", "--http", "0", "--workers", workers)
    done = run(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert 'Error: h11 is not installed: pip install "dispytch[http]"\n' in done.stderr


def test_a_heartbeat_that_cannot_be_written(folder: Path) -> None:
    done = run(folder, "run", "app:dispatcher", "--heartbeat", "nowhere/beat")
    assert done.returncode == 1
    assert "the heartbeat cannot be written to nowhere/beat: No such file or directory; name a file" in done.stderr


@contextmanager
def answering(body: bytes | None) -> Iterator[int]:
    """A server that says the same to everybody, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                if body is None:
                    connection.recv(1)  # until it is closed
                else:
                    connection.sendall(body)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (None, "has not answered within 0.2 s: its event loop is stuck"),
        (b"SSH-2.0\r\n", "does not answer: "),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", "answers 404 Not Found"),
        (b'HTTP/1.1 503 No\r\ncontent-length: 16\r\n\r\n{"reasons":["x"]', "answers 503 No"),
    ],
)
def test_a_url_where_something_else_is(folder: Path, body: bytes | None, text: str) -> None:
    with answering(body) as port:
        patience = "0.2" if body is None else str(PATIENCE)
        done = run(folder, "health", f"http://127.0.0.1:{port}", "--timeout", patience)
    assert done.returncode == 4
    assert text in done.stderr


def test_heartbeats_that_are_none_or_old(folder: Path) -> None:
    beat = folder / "beat"
    for text in ("", "[]", '{"alive": 1}'):
        beat.write_text(text)
        done = run(folder, "health", "beat")
        assert (done.returncode, done.stderr) == (4, "Error: beat is no heartbeat of dispytch\n")
    beat.write_text(json.dumps({"alive": {"reasons": []}, "ready": {"reasons": ["one", "two"]}}))
    assert run(folder, "health", "beat").returncode == 0
    assert run(folder, "health", "beat", "--ready").stderr == "Error: one; two\n"
    os.utime(beat, (beaten := time.time() - 40, beaten))
    done = run(folder, "health", "beat")
    assert done.returncode == 4
    found = re.fullmatch(
        r"Error: the last heartbeat is (\d+) s old: the service is stuck, or was killed\n", done.stderr
    )
    assert found is not None, done.stderr
    assert 40 <= int(found[1]) <= round(time.time() - beaten)
    assert run(folder, "health", "beat", "--max-age", "600").returncode == 0


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://", "http://127.0.0.1:x", "http://a:canary@127.0.0.1:1"])
def test_urls_that_are_none(folder: Path, url: str) -> None:
    done = run(folder, "health", url)
    assert done.returncode == 2
    assert "http://127.0.0.1:8080" in done.stderr
    assert "canary" not in done.stderr
