"""What all commands have in common."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from dispytch.cli.app import _COMMANDS, command
from tests.cli.support import environment, run
from tests.support import CANARY

_CLIENTS = ("confluent_kafka", "aio_pika", "pika", "redis", "trio", "rich", "watchfiles")

_SEES = """
import sys
from dispytch.cli import main
sys.argv = ["dispytch", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sorted(set(sys.modules) & {names!r}))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


@pytest.mark.parametrize(
    "arguments", [("--help",), *((name, "--help") for name in _COMMANDS), ("dead", "drop", "--help")], ids=" ".join
)
def test_help_imports_no_client(arguments: tuple[str, ...]) -> None:
    done = python("-c", _SEES.replace("{names!r}", repr(set(_CLIENTS))), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: dispytch")
    assert done.stdout.splitlines()[-1] == "imported:"


def test_help_imports_hardly_anything() -> None:
    """It is to be there in about 0.1 s: the library, with its event loops and pydantic, takes several times as long."""
    heavy = {"pydantic", "anyio", "asyncio", "dispytch._core", "dispytch._runtime", "dispytch.cli.run"}
    done = python("-c", _SEES.replace("{names!r}", repr(heavy)), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


def test_the_library_does_not_import_the_command_line() -> None:
    done = python("-c", "import dispytch, sys; print(sorted({'click', 'rich'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['dispytch', '--help']\n"
    if missing == "rich":
        code += "sys.modules['click'] = None\n"
    done = python("-c", f"{code}from dispytch.cli import main; main()")
    assert done.returncode == 2
    assert done.stderr == 'Error: the command line is an extra; install it with: pip install "dispytch[cli]"\n'


def test_every_command_has_help_and_its_line_in_the_list() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output
    for name, text in _COMMANDS.items():
        assert text.split()[0] in shown
        assert import_module(f"dispytch.cli.{name}").command.help


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "a:b", "--workers", "0"], ["--nonsense"]])
def test_a_wrong_command_line_is_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "Usage:" in done.output


_URL = f"redis://ada:{CANARY}@host"


@pytest.mark.parametrize(
    "arguments",
    [
        [_URL],
        ["run", "app:dispatcher", _URL],
        ["run", _URL],
        ["tail", "--to", _URL],
        ["emit", "app:X", _URL, "--to", _URL],
        ["dead", _URL],
        ["doctor", _URL, _URL],
        ["tail", f"redis://ada:{CANARY}@host:port", "orders"],
        ["tail", f"kafka://ada:{CANARY}@host:port", "orders"],
        ["tail", f"amqp://ada:{CANARY}@host?nonsense", "orders"],
    ],
)
def test_passwords_in_wrong_places_are_not_printed(arguments: list[str]) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code in (1, 2)
    assert CANARY not in done.output


def test_the_version(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout.startswith("dispytch ")


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dispytch.cli.app.import_module", interrupted)
    done = CliRunner().invoke(command, ["run", "app:dispatcher"])
    assert done.exit_code == 130
    assert not done.output.strip()
