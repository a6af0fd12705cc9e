"""What is in the wheel and in the sdist, and what they say of themselves."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from .conftest import ROOT, run


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def names_in(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    source = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name and ".egg-info" not in name}
    assert {name for name in names if ".dist-info/" not in name} == source
    assert "dispytch/py.typed" in source
    told = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert told == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_the_sdist_has_all_that_is_in_the_repository(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: nothing to compare with")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = names_in(sdist)
    assert {name for name in tracked.splitlines() if (ROOT / name).exists()} - names == set()
    assert names - {"PKG-INFO"} <= {*tracked.splitlines(), *untracked()}


def untracked() -> list[str]:
    """What is new and not ignored, while somebody works on it."""
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_tests_run_from_the_sdist(sdist: Path, tmp_path: Path) -> None:
    """As distributions do it, with their own builds of what it needs."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_settling.py",
        "tests/test_package.py",
    ]
    assert " passed" in run("env", f"PYTHONPATH={folder / 'src'}", *command, cwd=folder).stdout


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT)
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_package_indexes_would_take_them(dist: Path) -> None:
    done = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    assert done.stdout.count("PASSED") == 2


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "dispytch"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    always = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert [re.split("[>=]", text)[0] for text in always] == ["anyio", "pydantic"]
    classifiers = metadata.get_all("Classifier", [])
    assert {"Framework :: AnyIO", "Framework :: AsyncIO", "Framework :: Trio", "Typing :: Typed"} <= {*classifiers}
    assert not any(classifier.startswith("License ::") for classifier in classifiers)


def test_the_newest_change_is_of_this_version(metadata: Message) -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0].rstrip(",") == metadata["Version"]


def test_the_page_of_the_package_index_has_no_dead_links(metadata: Message) -> None:
    text = str(metadata.get_payload())
    assert text.lstrip().startswith("# Dispytch")
    assert "guide: events, handlers,\ndependencies, middleware, delivery,\nordering" in text
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert all(target.startswith("https://") for target in targets), targets


def test_a_release_is_of_files_that_ci_has_tested() -> None:
    """Actions are pinned by commit, and only the job that publishes may ask for a token."""
    for workflow in (ROOT / ".github" / "workflows").iterdir():
        text = workflow.read_text()
        assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE), workflow.name
        for action in re.findall(r"uses: (\S+)", text):
            assert action.startswith("./") or re.search(r"@[0-9a-f]{40}$", action), action
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert release.count("id-token: write") == 1
    assert "needs: tests" in release


def test_only_a_tag_of_this_version_is_released(metadata: Message) -> None:
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    script = textwrap.dedent(release.partition("        run: |\n")[2].partition("      - run:")[0])
    for tag, code in ((f"v{metadata['Version']}", 0), (metadata["Version"], 1), ("v0.0.1", 1)):
        done = run("env", f"TAG={tag}", "bash", "-ec", script, cwd=ROOT, check=False)
        assert done.returncode == code, done.stderr
