"""`dispytch demo`; what it does on every broker is in tests/test_examples.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from dispytch.cli.app import command as dispytch
from tests.cli.support import environment


def test_its_source_is_a_program(tmp_path: Path) -> None:
    done = CliRunner().invoke(dispytch, ["demo", "--source"])
    (tmp_path / "shop.py").write_text(done.stdout)
    ran = subprocess.run(
        [sys.executable, "shop.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "done:    4 events handled\nledger: closed\n" in ran.stdout


def test_a_broker_that_is_not_there() -> None:
    done = CliRunner().invoke(dispytch, ["demo", "redis://127.0.0.1:1"])
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
