"""What importing and installing the package brings, and does not bring, with it."""

import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import dispytch

OPTIONAL = (
    "aio_pika",
    "confluent_kafka",
    "h11",
    "msgpack",
    "opentelemetry",
    "pika",
    "prometheus_client",
    "redis",
    "trio",
    "uvloop",
)


def test_import_loads_no_optional_package() -> None:
    code = f"import sys, dispytch; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_metadata_is_present() -> None:
    assert version("dispytch")
    assert metadata("dispytch")["License-Expression"] == "Apache-2.0"


def test_the_command_line_is_declared() -> None:
    """In what the metadata is made from: what is installed may be older than it, where a checkout is tested."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {item.partition(">=")[0] for item in extras["cli"]} == {"click", "rich"}
    assert "cli" in extras["all"][0]
    assert project["scripts"] == {"dispytch": "dispytch.cli:main"}
    assert callable(import_module("dispytch.cli").main)


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = (
        "import dispytch, sys\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert {*dispytch.__all__} == dispytch._PLACES.keys()\n"
        "assert {*dispytch.__all__, 'errors'} <= {*dir(dispytch)}\n"
        "for name in dispytch.__all__:\n"
        "    assert getattr(dispytch, name) is vars(dispytch)[name], name\n"
        "print(dispytch.errors.DispytchError.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "DispytchError\n", done.stderr


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'dispytch' has no attribute 'EventDispatchr'"):
        getattr(dispytch, "EventDispatchr")  # noqa: B009 - type checkers know that it is not there
    with pytest.raises(ImportError, match="cannot import name 'EventDispatchr'"):
        exec("from dispytch import EventDispatchr")
