"""What the built site has: every page, every public name, links that lead somewhere, and nothing from other hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml

from tests.site.conftest import ROOT

SITE_URL = "https://docs.example.org/dispytch/"
PUBLIC = sorted(
    path.stem if path.is_file() else path.name
    for path in (ROOT / "src" / "dispytch").iterdir()
    if not path.name.startswith("_")
    and (path.suffix == ".py" or (path / "__init__.py").is_file())
    and path.name != "cli"  # a command, described in the guide
)

_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


class _Tolerant(yaml.SafeLoader):
    """Reads `!ENV` as nothing."""


_Tolerant.add_constructor("!ENV", lambda loader, node: None)


def in_navigation() -> list[str]:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from pages(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from pages(value)

    configuration = yaml.load((ROOT / "mkdocs.yml").read_text(), _Tolerant)
    return list(pages(configuration["nav"]))


class Document(HTMLParser):
    """What a page of HTML refers to, and can be referred to by."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.resources.append(values["href"])
        elif "src" in values:
            self.resources.append(values["src"])


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {file: Document(file) for file in site.rglob("*.html")}


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md")}
    listed = in_navigation()
    assert pages - {*listed} == set(), "add these to `nav` in mkdocs.yml"
    assert {*listed} - pages == set()
    assert len(listed) == len({*listed})


def test_links_and_anchors_lead_somewhere(site: Path, documents: dict[Path, Document]) -> None:
    broken = []
    for file, document in documents.items():
        for link in document.links + document.resources:
            target, anchor = urldefrag(link.removeprefix(SITE_URL) if link.startswith(SITE_URL) else link)
            if urlsplit(target).scheme in ("http", "https", "mailto", "data"):
                continue
            path = unquote(target)
            if path.startswith("/"):  # of the page that is shown for what is not there
                path = path.removeprefix("/dispytch").lstrip("/")
                found = site / path
            else:
                found = (file.parent / path).resolve() if path else file
            found = found / "index.html" if found.is_dir() else found
            if not found.exists():
                broken.append(f"{file.relative_to(site)}: {link}")
            elif anchor and found in documents and unquote(anchor) not in documents[found].anchors:
                broken.append(f"{file.relative_to(site)}: {link} has no such anchor")
    assert broken == []
    assert sum(len(document.links) for document in documents.values()) > 1000


def test_nothing_comes_from_other_hosts(documents: dict[Path, Document]) -> None:
    foreign = {url for document in documents.values() for url in document.resources if "//" in url}
    assert {url for url in foreign if not url.startswith(SITE_URL)} == set()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference(module: str, documents: dict[Path, Document], site: Path) -> None:
    name = "dispytch" if module == "__init__" else f"dispytch.{module}"
    file = site / "api" / module / "index.html"
    assert file in documents, f"{name} is public: write docs/api/{module}.md with `::: {name}`, and add it to `nav`"
    # A function that has the name of its module is shown as what is in that.
    shown = {re.sub(r"\b(\w+)\.\1$", r"\1", anchor) for anchor in documents[file].anchors}
    names = {f"{name}.{one}" for one in import_module(name).__all__}
    assert names - shown == set(), "without a docstring a name is not shown"


def test_the_package_itself_is_in_the_reference(documents: dict[Path, Document], site: Path) -> None:
    names = {f"dispytch.{one}" for one in import_module("dispytch").__all__}
    anchors = documents[site / "api" / "dispytch" / "index.html"].anchors
    assert names - anchors == set()
    assert "dispytch.EventDispatcher.handler" in anchors  # inherited from a private class


def test_no_page_shows_a_docstring_that_was_not_understood(site: Path) -> None:
    for file in (site / "api").rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", file.read_text(), flags=re.DOTALL)
        assert "Args:" not in text, file
        assert "Raises:\n" not in text, file
        assert not re.search(r"<p>\s*::\s*</p>", text), file


def test_what_language_models_read(site: Path) -> None:
    index = (site / "llms.txt").read_text()
    addresses = re.findall(r"\(<(.*?)>\)", index)
    assert len(addresses) == len(in_navigation())
    for address in addresses:
        assert (site / address.removeprefix(SITE_URL)).is_file(), address
    full = (site / "llms-full.txt").read_text()
    assert "Nothing ever" in full or "dead-lettered" in full
    assert "class UserRegistered(EventBase):" in full


def test_the_yaml_of_the_pages_is_yaml() -> None:
    texts = [text for page in (ROOT / "docs").rglob("*.md") for text in _YAML.findall(page.read_text())]
    assert all(isinstance(yaml.safe_load(text), dict) for text in texts)
    assert texts


def test_the_configuration_is_valid_for_mkdocs_too(tmp_path: Path) -> None:
    """But for the theme, and the plug-in for language models: Zensical has them, MkDocs takes them from elsewhere."""
    from mkdocs.config import load_config

    text = (ROOT / "mkdocs.yml").read_text()
    text = re.sub(r"^theme:\n(?:  .*\n)+", "theme: mkdocs\n", text, flags=re.MULTILINE)
    text = re.sub(r"^  - llmstxt:\n(?:      .*\n)+", "", text, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(text.replace("docs_dir: docs", f"docs_dir: {ROOT / 'docs'}"))
    config = load_config(str(tmp_path / "mkdocs.yml"), strict=True)  # which raises what is wrong
    assert config.nav
