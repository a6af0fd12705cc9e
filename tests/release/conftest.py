"""What is released, built once: needs the package index (for hatchling, and for what the wheel is installed with)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program, without what the tests' own environment would have it import."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=cwd, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and nothing else but what that asks for."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def add(self, requirement: str) -> None:
        run("uv", "pip", "install", "--quiet", "--python", self.python, requirement)

    def code(self, text: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(self.python, "-I", "-W", "error", "-c", text, cwd=self.folder, check=check)


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--installer", "uv", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def sdist(dist: Path) -> Path:
    (found,) = dist.glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    """The wheel without any extra."""
    return install(tmp_path_factory.mktemp("bare"), str(wheel))


def install(folder: Path, requirement: str) -> Installed:
    assert shutil.which("uv"), "uv is not installed; run these tests by: tox run -e release"
    run("uv", "venv", "--quiet", "--python", sys.executable, folder / "venv")
    installed = Installed(folder / "venv")
    installed.add(requirement)
    return installed
