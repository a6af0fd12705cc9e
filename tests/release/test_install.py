"""The wheel in fresh virtual environments: alone, and with each of its extras."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT, Installed, install, run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_APP = """
import dispytch
from dispytch.memory import MemoryBroker, MemoryConsumer
app = dispytch.EventDispatcher(MemoryConsumer(MemoryBroker()))
app.handler(topic="a")(lambda: None)
"""

# For each extra what works with it, and without it says what to install. What runs is ended by a signal.
USES = {
    "kafka": "from dispytch.kafka import KafkaProducer as P; P('localhost:9092')",
    "rabbitmq": "from dispytch.rabbitmq import RabbitMQProducer as P; P('amqp://localhost')",
    "redis": "from dispytch.redis import RedisStreamProducer as P; P('redis://localhost')",
    "django": "import dispytch.django",
    "msgpack": "from dispytch.serialization import MessagePackSerializer as S; S()",
    "http": "from dispytch.health import HealthServer as H; H(None)",
    "metrics": "import dispytch.metrics",
    "otel": "import dispytch.telemetry",
    "trio": _APP + "app.run(backend='trio')",
    "uvloop": _APP + "app.run(use_uvloop=True)",
}

# Sends itself the signal that ends `run` as soon as the dispatcher is ready.
_ENDING = """
import logging, os, signal
class End(logging.Handler):
    def emit(self, record):
        if "is ready" in record.getMessage(): os.kill(os.getpid(), signal.SIGTERM)
logging.getLogger("dispytch").setLevel("INFO"); logging.getLogger("dispytch").addHandler(End())
"""

_ALL_MODULES = """
import importlib, pkgutil, dispytch, django.conf
django.conf.settings.configure(INSTALLED_APPS=["dispytch.django", "dispytch.django.outbox"])
django.setup()
for module in pkgutil.walk_packages(dispytch.__path__, "dispytch."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def test_alone(bare: Installed) -> None:
    out = bare.code("import dispytch\nfor name in dispytch.__all__: getattr(dispytch, name)\nprint(dispytch.__file__)")
    assert str(bare.folder) in out.stdout
    packages = run("uv", "pip", "list", "--format", "freeze", "--python", bare.python).stdout
    assert {line.partition("==")[0] for line in packages.splitlines()} <= {
        *("dispytch", "dispytch @ file", "anyio", "idna", "sniffio", "typing-extensions", "typing-inspection"),
        *("pydantic", "pydantic-core", "annotated-types"),
    }


def test_alone_an_app_runs_in_memory(bare: Installed) -> None:
    program = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert bare.code(program).stdout == "order 1 at berlin: thank you\n"


@pytest.mark.parametrize("command", [["bin/dispytch", "--help"], ["bin/python", "-m", "dispytch", "run", "a:b"]])
def test_alone_the_command_says_what_to_install(bare: Installed, command: list[str]) -> None:
    done = run(bare.folder / command[0], *command[1:], check=False)
    assert done.returncode == 2
    assert done.stderr == 'Error: the command line is an extra; install it with: pip install "dispytch[cli]"\n'


@pytest.mark.parametrize("extra", USES)
def test_alone_what_is_missing_is_named(bare: Installed, extra: str) -> None:
    done = bare.code(USES[extra], check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("dispytch.errors.MissingExtraError: "), last
    assert f'pip install "dispytch[{extra}]"' in last


@pytest.mark.parametrize("extra", sorted({*PROJECT["optional-dependencies"]} - {"all", "cli"}))
def test_with_an_extra(extra: str, wheel: Path, tmp_path: Path) -> None:
    installed = install(tmp_path, f"{wheel}[{extra}]")
    installed.code(_ENDING + USES.get(extra, "import dispytch"))


def test_with_the_command_line(wheel: Path, tmp_path: Path) -> None:
    installed = install(tmp_path, f"{wheel}[cli]")
    command = installed.folder / "bin" / "dispytch"
    assert run(command, "--version").stdout == f"dispytch {PROJECT['version']}\n"
    (tmp_path / "app.py").write_text(_APP)
    done = run(command, "check", "app:app", "--app-dir", tmp_path)
    assert done.stdout.endswith("ok: 1 handler on 1 consumer\n"), done.stdout


def test_with_everything(wheel: Path, tmp_path: Path) -> None:
    installed = install(tmp_path, f"{wheel}[all]")
    installed.add("pytest")  # which the fixtures and the conformance suite are for
    installed.code(_ALL_MODULES)
    for statement in USES.values():
        installed.code(_ENDING + statement)
    names = run(installed.python, "-m", "pytest", "--fixtures", "-q", cwd=tmp_path, check=False).stdout
    assert "memory_broker" in names


def test_types_are_there_for_who_installs_it(bare: Installed, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from dispytch import EventEmitter\n\nreveal_type(EventEmitter.emit)\n")
    bare.add("mypy")
    done = run(bare.python, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", "app.py", cwd=tmp_path)
    assert "Receipt" in done.stdout
