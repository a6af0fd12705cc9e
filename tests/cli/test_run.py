"""`dispytch run` as a process: signals, exit codes, workers, reloading."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import LOOPS, run, running
from tests.support import blocking_until, unique


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(folder: Path, loop: str, number: signal.Signals) -> None:
    with running(folder, "run", "app:dispatcher", "--loop", loop, JOB="wait") as one:
        blocking_until(lambda: any(line.startswith("began") for line in one.log))
        one.signal(number)
        one.until_said(f"{number.name}: draining")
        (folder / "go").touch()
        assert one.code() == 0
        assert one.log[-2:] == ["done", "left"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("job", ["wait", "block"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_cancels(folder: Path, loop: str, job: str, number: signal.Signals, code: int) -> None:
    with running(folder, "run", "app:dispatcher", "--loop", loop, JOB=job) as one:
        blocking_until(lambda: any(line.startswith("began") for line in one.log))
        blocking_until(lambda: job == "wait" or "blocks" in one.log)
        one.signal(number)
        one.until_said("draining")
        one.signal(number)
        assert one.code() == code
        assert "left" in one.log  # what was entered is exited, threads or not


_LOOKS = """
import gc
from app import Job, dispatcher, note

@dispatcher.handler(Job)
async def look(job: Job) -> None:
    note(f"frozen: {gc.get_freeze_count() > 1000}")
"""


def test_what_is_there_at_the_start_is_not_collected(folder: Path) -> None:
    (folder / "looks.py").write_text(_LOOKS)
    with running(folder, "run", "looks:dispatcher") as one:
        blocking_until(lambda: any(line.startswith("frozen") for line in one.log))
        one.signal(signal.SIGTERM)
        assert one.code() == 0
    assert "frozen: True" in one.log


def test_a_factory_and_logs_as_json(folder: Path) -> None:
    arguments = ("run", "app:make", "--factory", "--log-format", "json", "--log-level", "debug")
    with running(folder, *arguments) as one:
        one.until_said("is ready")
        one.signal(signal.SIGTERM)
        assert one.code() == 0
    lines = [json.loads(line) for line in one.said.splitlines()]
    assert {"level": "info", "logger": "dispytch"}.items() <= lines[-1].items()
    assert {"time", "message", "pid"} <= lines[-1].keys()


_CONFIG: dict[str, Any] = {
    "version": 1,
    "formatters": {"own": {"format": "own %(levelname)s %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "own.log", "formatter": "own"}},
    "loggers": {"dispytch": {"level": "INFO", "handlers": ["file"]}},
}
_INI = """
[loggers]
keys = root
[handlers]
keys = file
[formatters]
keys = own
[logger_root]
level = INFO
handlers = file
[handler_file]
class = FileHandler
args = ("own.log",)
formatter = own
[formatter_own]
format = own %(levelname)s %(message)s
"""


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("name", "text"), [("logs.json", json.dumps(_CONFIG)), ("logs.ini", _INI)])
def test_logs_as_a_file_says(folder: Path, name: str, text: str, workers: str) -> None:
    (folder / name).write_text(text)
    log = folder / "own.log"
    with running(folder, "run", "app:dispatcher", "--log-config", name, "--workers", workers) as one:
        blocking_until(
            lambda: log.exists() and log.read_text().count("own INFO The dispatcher is ready") == int(workers)
        )
        one.signal(signal.SIGTERM)
        assert one.code() == 0
    assert "SIGTERM: draining" in log.read_text()
    assert not one.said  # what the file replaces


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "it is no JSON: Expecting property name"),
        ("a.json", "[]", "it holds a list and no object"),
        ("a.json", "{}", "dictionary doesn't specify a version"),
        (
            "a.json",
            json.dumps({**_CONFIG, "handlers": {"file": {"class": "logging.Absent"}}}),
            "Unable to configure handler 'file'; Cannot resolve 'logging.Absent'",
        ),
        ("a.ini", "nonsense", "nonsense"),
        ("a.ini", "[loggers]\nkeys = root\n", "KeyError: 'formatters'"),
        ("a.yaml", "version: 1", "it is YAML; write it as JSON or INI"),
    ],
)
def test_a_logging_configuration_that_is_wrong(folder: Path, name: str, text: str, reason: str) -> None:
    (folder / name).write_text(text)
    done = run(folder, "run", "app:dispatcher", "--log-config", name)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: the logging configuration {name} cannot be used: ")
    assert reason in line


def test_a_logging_configuration_that_is_not_there_or_wrong_for_workers(folder: Path) -> None:
    done = run(folder, "run", "app:dispatcher", "--log-config", "absent.json")
    assert done.returncode == 2
    assert "'absent.json' does not exist" in done.stderr
    (folder / "a.json").write_text("{}")
    done = run(folder, "run", "app:dispatcher", "--log-config", "a.json", "--workers", "2")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


BROKEN = {
    "format": ("app", 2, 'Import string "app" must be in format "<module>:<attribute>"'),
    "a file": ("./app.py:dispatcher", 2, '"./app.py" is a file; name its module instead: "app:dispatcher"'),
    "no module": ("nowhere:dispatcher", 2, 'Could not import module "nowhere"'),
    "no attribute": ("app:dispatch", 2, "it has the dispatcher dispatcher"),
    "no dispatcher": ("app:number", 2, "is no EventDispatcher (its type is int)"),
    "no factory": ("app:make", 2, "add --factory"),
    "needs another": ("needy:dispatcher", 2, "No module named 'absent_package'"),
    "raises": ("raising:dispatcher", 2, "ValueError: out of luck"),
    "declared wrong": ("wrong:dispatcher", 1, "no handler is registered"),
    "unreachable": ("unreachable:dispatcher", 3, "127.0.0.1:1"),
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", BROKEN)
def test_errors_are_one_line_that_says_what_to_do(folder: Path, name: str, workers: str) -> None:
    target, code, text = BROKEN[name]
    if name == "unreachable" and workers == "2":
        pytest.skip("workers try again")
    (folder / "needy.py").write_text("import absent_package")
    (folder / "raising.py").write_text("raise ValueError('out of\\nluck')")
    (folder / "wrong.py").write_text(
        "from dispytch import EventDispatcher, consumer_from_url\n"
        "dispatcher = EventDispatcher(consumer_from_url('memory://wrong'))\n"
    )
    (folder / "unreachable.py").write_text(
        "from dispytch import EventDispatcher, consumer_from_url\n"
        "dispatcher = EventDispatcher(consumer_from_url('redis://user:canary@127.0.0.1:1'))\n"
        "@dispatcher.handler(topic='a')\n"
        "def handle(): ...\n"
    )
    done = run(folder, "run", target, "--workers", workers)
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors
    assert all(text in line for line in errors)
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stderr
    assert not done.stdout


def test_debug_shows_the_traceback(folder: Path) -> None:
    (folder / "raising.py").write_text("raise ValueError('out of luck')")
    done = run(folder, "run", "raising:dispatcher", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert 'raising.py", line 1' in done.stderr


def test_a_change_drains_and_starts_again(folder: Path) -> None:
    with running(folder, "run", "app:dispatcher", "--reload", JOB="wait") as one:
        blocking_until(lambda: any(line.startswith("began") for line in one.log))
        app = folder / "app.py"
        app.write_text(app.read_text() + "\nnote('the second version')\n")
        one.until_said("app.py changed: draining")
        one.until_said("SIGTERM: draining")
        assert "the second version" not in one.log
        (folder / "go").touch()
        blocking_until(lambda: one.log.count("entered") == 2)
        assert one.log[2:5] == ["done", "left", "the second version"]

        app.write_text("def broken(:")
        one.until_said("SyntaxError")
        one.until_said("the next change of a file starts it again")
        app.write_text(
            "note = print\nfrom dispytch import EventDispatcher, consumer_from_url\n"
            "dispatcher = EventDispatcher(consumer_from_url('memory://x'))\n"
            "dispatcher.handler(topic='x')(print)\n"
        )
        one.until_said("is ready", times=3)
        one.signal(signal.SIGINT)
        assert one.code() == 0


def pid_of(log: list[str]) -> int:
    return int(next(line for line in reversed(log) if line.startswith("began")).split()[-1])


def test_a_worker_that_died_is_started_again(folder: Path) -> None:
    with running(folder, "run", "app:dispatcher", "--workers", "2") as one:
        blocking_until(lambda: sum(line.startswith("began") for line in one.log) == 2)
        pid = pid_of(one.log)
        os.kill(pid, signal.SIGKILL)
        one.until_said(f"(pid {pid}) died by signal 9 (Killed); starting it again in 0.5 s.")
        blocking_until(lambda: sum(line.startswith("began") for line in one.log) == 3)
        os.kill(pid_of(one.log), signal.SIGKILL)
        one.until_said("starting it again in", times=2)
        one.signal(signal.SIGTERM)
        assert one.code() == 0
        assert "has a broker of its own" in one.said


def test_a_second_signal_cancels_workers(folder: Path) -> None:
    with running(folder, "run", "app:dispatcher", "--workers", "2", JOB="wait") as one:
        blocking_until(lambda: sum(line.startswith("began") for line in one.log) == 2)
        one.signal(signal.SIGINT)
        one.until_said("SIGTERM: draining", times=2)
        one.signal(signal.SIGINT)
        assert one.code() == 130


@pytest.mark.skipif(sys.platform == "darwin", reason="looks at /proc")
def test_workers_drain_if_their_supervisor_is_killed(folder: Path) -> None:
    with running(folder, "run", "app:dispatcher", "--workers", "1", "--reload", JOB="wait") as one:
        blocking_until(lambda: any(line.startswith("began") for line in one.log))
        worker = pid_of(one.log)
        assert worker != one.process.pid
        one.process.kill()
        blocking_until(lambda: "SIGTERM: draining" in one.said)
        (folder / "go").touch()
        blocking_until(lambda: one.log[-1] == "left")
        blocking_until(lambda: not Path(f"/proc/{worker}").exists() or "Z" in _state(worker))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_clients_that_log_each_step_are_heard_at_the_level_debug_alone(folder: Path, rabbitmq_url: str) -> None:
    (folder / "rabbit.py").write_text(
        "from dispytch import EventDispatcher, consumer_from_url\n"
        f"dispatcher = EventDispatcher(consumer_from_url({rabbitmq_url!r}, {unique('logs')!r}))\n"
        f"dispatcher.handler(topic={unique('logs')!r})(print)\n"
    )
    for level, is_heard in (("info", False), ("debug", True)):
        with running(folder, "run", "rabbit:dispatcher", "--log-level", level) as one:
            one.until_said("The dispatcher is ready")
            one.signal(signal.SIGTERM)
            assert one.code() == 0
        assert (" pika." in one.said) is is_heard
