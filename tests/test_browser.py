"""The browser that tests use sees what it is to see."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import Browser, BrowserError


def written(folder: Path, body: str) -> str:
    file = folder / "page.html"
    file.write_text(f"<!doctype html><title>t</title><body style='background: white'>{body}")
    return file.as_uri()


def test_problems_requests_and_dialogs(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "there.css").write_text("")
    body = (
        "<link rel=stylesheet href=there.css><script src=absent.js></script>"
        "<script>console.error('oh'); console.log('calm'); alert('ah'); absent()</script>"
    )
    url = written(tmp_path, body)
    with browser.page() as page:
        page.open(url)
        assert page.dialogs == ["ah"]
        assert page.requests == [url, url.replace("page.html", "there.css"), url.replace("page.html", "absent.js")]
        said = "\n".join(page.problems)
        assert all(text in said for text in ("oh", "ERR_FILE_NOT_FOUND", "absent is not defined"))
        assert "calm" not in said
    with browser.page() as page:
        assert (page.requests, page.problems, page.dialogs) == ([], [], [])


def test_what_is_too_wide_or_too_faint(browser: Browser, tmp_path: Path) -> None:
    url = written(tmp_path, "<p style='width: 500px; color: #999'>faint</p><p>strong</p>")
    with browser.page(width=380) as page:
        page.open(url)
        assert page.overflow() > 100
        assert page.low_contrasts() == ["2.85 P faint"]
    with browser.page(width=1280) as page:
        page.open(url)
        assert page.overflow() == 0


def test_colours_and_screenshots(browser: Browser, tmp_path: Path) -> None:
    url = written(tmp_path, "<div style='height: 3000px'></div>")
    dark = "matchMedia('(prefers-color-scheme: dark)').matches"
    with browser.page(width=400, height=300, scheme="dark") as page:
        page.open(url)
        assert page.evaluate(dark)
        page.screenshot(tmp_path / "seen.png")
        page.screenshot(tmp_path / "full.png", full=True)
    sizes = [(tmp_path / name).read_bytes()[16:24] for name in ("seen.png", "full.png")]
    widths = [int.from_bytes(one[:4], "big") for one in sizes]
    heights = [int.from_bytes(one[4:], "big") for one in sizes]
    assert widths == [400, 400]
    assert heights[0] == 300
    assert heights[1] >= 3000
    with browser.page(medium="print") as page:
        page.open(url)
        assert not page.evaluate(dark)
        assert page.evaluate("matchMedia('print').matches")


def test_what_it_cannot_do_is_an_error(browser: Browser, tmp_path: Path) -> None:
    with browser.page() as page:
        with pytest.raises(BrowserError, match="ERR_FILE_NOT_FOUND"):
            page.open((tmp_path / "absent.html").as_uri())
        with pytest.raises(BrowserError, match="absent"):
            page.evaluate("absent()")
        with pytest.raises(BrowserError, match="wasn't found"):
            page.send("Absent.method")
        assert page.evaluate("new Promise(done => setTimeout(() => done([1, 'a']), 1))") == [1, "a"]
