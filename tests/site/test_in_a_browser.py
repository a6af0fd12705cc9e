"""The site as it is seen: light and dark, narrow and wide; and searched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import pytest

from tests.browser import Browser, Page

PAGES = {
    "home": "",
    "quickstart": "quickstart/",
    "kafka": "transports/kafka/",
    "outbox": "recipes/outbox/",
    "comparison": "comparison/",
    "api": "api/dispytch/",
}
WIDTHS = {"narrow": 390, "wide": 1440}


def until(page: Page, script: str) -> None:
    end = time.monotonic() + 20
    while not page.evaluate(script):
        assert time.monotonic() < end, f"never came true: {script}"
        time.sleep(0.02)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page(
    name: str, width: str, scheme: Literal["light", "dark"], browser: Browser, address: str, pictures: Path
) -> None:
    with browser.page(width=WIDTHS[width], height=1000, scheme=scheme) as page:
        page.open(address + PAGES[name])
        page.screenshot(pictures / f"{name}-{width}-{scheme}.png")
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith((address, "data:"))] == []
        assert page.overflow() <= 0
        colours = {"light": "default", "dark": "slate"}
        assert page.evaluate("document.body.dataset.mdColorScheme") == colours[scheme]
        hidden = "A Skip to content"  # until it has the focus
        assert [text for text in page.low_contrasts(4.0) if hidden not in text] == []


def test_the_reader_can_choose_between_light_and_dark(browser: Browser, address: str) -> None:
    with browser.page(scheme="light") as page:
        page.open(address)
        scheme = "document.body.dataset.mdColorScheme"
        seen = [page.evaluate(scheme)]
        for _ in range(2):
            page.evaluate("[...document.querySelectorAll('label[for^=__palette]')].find(one => !one.hidden).click()")
            seen.append(page.evaluate(scheme))
        assert set(seen) == {"default", "slate"}
        page.open(address + "quickstart/")
        assert page.evaluate(scheme) == seen[-1]  # and it is remembered


@pytest.mark.parametrize(
    ("words", "page_of_it"), [("replay dead letters", "guide/dead-letters/"), ("RedisStreamConsumer", "api/redis/")]
)
def test_search_finds_a_page(words: str, page_of_it: str, browser: Browser, address: str, pictures: Path) -> None:
    with browser.page(width=WIDTHS["wide"], height=1000) as page:
        page.open(address)
        page.evaluate(f"({_SEARCH})({words!r})")
        until(page, f"({_RESULTS})().some(one => one.includes({page_of_it!r}))")
        page.screenshot(pictures / f"search-{words.split()[0]}.png")
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith((address, "data:", "blob:"))] == []


# The search is a dialogue in a shadow tree of its own.
_FIND = """
const find = (root, selector) => {
  const found = [...root.querySelectorAll(selector)];
  for (const one of root.querySelectorAll('*')) if (one.shadowRoot) found.push(...find(one.shadowRoot, selector));
  return found.filter(one => one.getRootNode() !== document);
};
"""
_SEARCH = (
    "async words => {"
    + _FIND
    + """
  document.querySelector('.md-search__button').click();
  let input;
  for (let i = 0; i < 1000 && !input; i++) {
    await new Promise(done => setTimeout(done, 20));
    input = find(document, 'input')[0];
  }
  input.focus();
  input.value = words;
  input.dispatchEvent(new Event('input', {bubbles: true, composed: true}));
}"""
)
_RESULTS = "() => {" + _FIND + "return find(document, 'a').map(one => one.href); }"
