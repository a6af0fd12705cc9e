"""The page in a real browser: light and dark, narrow and wide, on paper, by keyboard, with hostile content."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Literal

import pytest

from dispytch.asyncapi import to_html
from tests.asyncapi.applications import applications
from tests.asyncapi.showcase import showcase
from tests.asyncapi.test_page import hostile
from tests.browser import Browser, Page

Scheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("page"), showcase())


def written(folder: Path, document: dict[str, Any]) -> str:
    file = folder / "page.html"
    file.write_text(to_html(document))
    return file.as_uri()


def is_clean(page: Page, url: str) -> bool:
    """Whether it asked for nothing but itself, and had nothing to complain of."""
    assert page.problems == []
    assert page.dialogs == []
    assert page.requests == [url]
    return True


@pytest.mark.parametrize("width", [320, 380, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Browser, shop: str, tmp_path: Path, scheme: Scheme, width: int) -> None:
    with browser.page(width=width, scheme=scheme) as page:
        page.open(shop)
        page.screenshot(tmp_path / f"{scheme}-{width}.png")
        page.screenshot(tmp_path / f"{scheme}-{width}-full.png", full=True)
        assert page.overflow() == 0
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert page.overflow() == 0
        assert page.low_contrasts() == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        assert is_clean(page, shop)


@pytest.mark.parametrize("name", ["demo", "shop service"])
def test_several_transports(browser: Browser, tmp_path: Path, name: str) -> None:
    url = written(tmp_path, applications()[name])
    for width in (320, 1280):
        with browser.page(width=width) as page:
            page.open(url)
            assert page.overflow() == 0
            assert is_clean(page, url)


def test_contents_are_beside_it_where_there_is_room(browser: Browser, shop: str) -> None:
    visible = "document.querySelector('nav li a').checkVisibility({contentVisibilityAuto: true})"
    with browser.page(width=1280) as page:
        page.open(shop)
        assert page.evaluate(visible)
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).position") == "sticky"
    with browser.page(width=380) as page:
        page.open(shop)
        assert not page.evaluate(visible)
        page.evaluate("document.querySelector('nav summary').focus()")
        page.press("Enter")
        assert page.evaluate(visible)


def test_by_keyboard(browser: Browser, shop: str) -> None:
    with browser.page() as page:
        page.open(shop)
        page.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
        page.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        # What is folded opens by keyboard, and what is wider than its place can be scrolled to.
        page.evaluate("document.querySelector('details.nested summary').focus()")
        page.press("Enter")
        assert page.evaluate("document.querySelector('details.nested').open")
        assert page.evaluate("[...document.querySelectorAll('pre')].every(one => one.tabIndex === 0)")


def test_what_screen_readers_are_told(browser: Browser, shop: str) -> None:
    with browser.page() as page:
        page.open(shop)
        nodes = page.send("Accessibility.getFullAXTree")["nodes"]
        roles = [one.get("role", {}).get("value") for one in nodes if not one.get("ignored")]
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert roles.count(landmark) == 1, landmark
        unnamed = [
            one for one in nodes if one.get("role", {}).get("value") in ("link", "table") and not one["name"]["value"]
        ]
        assert [one["role"] for one in unnamed] == []
        assert page.evaluate("document.documentElement.lang") == "en"


def test_on_paper(browser: Browser, shop: str, tmp_path: Path) -> None:
    with browser.page(medium="print", scheme="dark") as page:
        page.open(shop)
        assert not page.evaluate("document.querySelector('nav').checkVisibility()")
        assert page.evaluate("document.querySelector('main').offsetWidth > innerWidth * 0.9")
        assert page.evaluate(
            "document.querySelector('details.nested td').checkVisibility({contentVisibilityAuto: true})"
        )
        paper = base64.b64decode(page.send("Page.printToPDF")["data"])
        (tmp_path / "page.pdf").write_bytes(paper)
        assert paper.startswith(b"%PDF")


def test_every_link_leads_to_what_can_be_seen(browser: Browser, shop: str) -> None:
    with browser.page() as page:
        page.open(shop)
        lost = page.evaluate(
            """[...document.querySelectorAll('a[href]')].map(one => one.getAttribute('href')).filter(
                one => !one.startsWith('#') || !document.getElementById(one.slice(1))?.checkVisibility())"""
        )
        assert lost == []


def test_hostile_content_is_shown_and_does_nothing(browser: Browser, tmp_path: Path) -> None:
    url = written(tmp_path, hostile())
    for width in (320, 1280):
        with browser.page(width=width) as page:
            page.open(url)
            page.screenshot(tmp_path / f"hostile-{width}.png", full=True)
            assert (
                page.evaluate("document.querySelectorAll('script, img, svg, iframe, object, form, input').length") == 0
            )
            assert page.evaluate("document.querySelectorAll('style').length") == 1
            assert page.evaluate("document.querySelector('h1').checkVisibility()")
            assert "</script><script>alert(1)</script>" in page.evaluate("document.body.innerText")
            assert page.overflow() == 0
            assert is_clean(page, url)


def test_scripts_are_forbidden(browser: Browser, tmp_path: Path) -> None:
    """Were something not escaped, the page's own policy would still hold."""
    file = tmp_path / "page.html"
    injected = "<script>alert(1)</script><img src='https://example.com/x.png' onerror='alert(2)'>"
    file.write_text(to_html(showcase()).replace("<footer>", f"<footer>{injected}"))
    with browser.page() as page:
        page.open(file.as_uri())
        assert page.dialogs == []
        assert len(page.problems) >= 2
        assert all("Content Security Policy" in one for one in page.problems)
        assert page.evaluate("document.querySelector('img').naturalWidth") == 0
