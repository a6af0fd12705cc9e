"""A real browser for tests of pages: Debian's chromium, told what to do by its debugging protocol, over a pipe.

::

    with Browser.start(program) as browser:
        with browser.page(width=380, scheme="dark") as page:
            page.open(path.as_uri())
            page.screenshot(tmp_path / "narrow-dark.png")
            assert page.problems == []                   # errors of the console, of scripts, of the policy
            assert page.requests == [path.as_uri()]      # everything that it asked for
            assert page.evaluate("document.title") == "..."

The fixture ``browser`` of ``tests/conftest.py`` starts one for a session of tests, if there is one.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Self

PATIENCE = 30.0
"""Seconds after which an answer will not come any more."""

_TALLEST = 16_000
"""Pixels of a picture that it can draw in one."""

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # it runs as root in containers, and sees nothing but our own pages
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


class BrowserError(Exception):
    """The browser has ended, does not answer, or refuses."""


class Browser:
    """A browser that runs; make one with `start`."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process = process
        self._to, self._back = to, back
        self._number = 0
        self._buffer = b""
        self._pages: dict[str, Page] = {}

    @classmethod
    @contextmanager
    def start(cls, program: str = "chromium") -> Iterator[Self]:
        """Runs a browser with a profile of its own, for the length of a context.

        Args:
            program: Its name or path; any Chromium will do.
        """
        # Chromium reads commands from descriptor 3 and answers at 4; ours are numbered higher, to be out of the way.
        theirs_in, to = (_high(one) for one in os.pipe())
        back, theirs_out = (_high(one) for one in os.pipe())

        def place() -> None:
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
            process = subprocess.Popen(
                [program, *_ARGUMENTS, f"--user-data-dir={profile}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=place,
                pass_fds=(3, 4),
                env={**os.environ, "HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile},
            )
            os.close(theirs_in)
            os.close(theirs_out)
            try:
                yield cls(process, to, back)
            finally:
                os.close(to)  # the end of the pipe is the end of the browser
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                os.close(back)

    @contextmanager
    def page(
        self, *, width: int = 1280, height: int = 800, scheme: Literal["light", "dark"] = "light", medium: str = ""
    ) -> Iterator[Page]:
        """A new page, which keeps nothing from others.

        Args:
            width: In CSS pixels, like ``height``.
            scheme: What ``prefers-color-scheme`` is.
            medium: ``"print"`` shows what would be printed.
        """
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.send(f"{domain}.enable")
            page.send(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.send("Emulation.setEmulatedMedia", media=medium, features=features)
            yield page
        finally:
            with suppress(BrowserError):  # it may have ended, which the test has been told already
                self.send("Target.disposeBrowserContext", browserContextId=context)
            del self._pages[session]

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol and waits for its result."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._write(json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self.read(end)
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                result: dict[str, Any] = answer["result"]
                return result

    def read(self, end: float) -> dict[str, Any]:
        """The next message, be it an answer or an event, which its page takes note of."""
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._back], [], [], left)[0]:
                raise BrowserError(f"the browser has not answered for {PATIENCE} s")
            received = os.read(self._back, 1 << 20)
            if not received:
                raise BrowserError("the browser has ended")
            self._buffer += received
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.note(message["method"], message["params"])
        return message

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._to, data) :]
        except BrokenPipeError:
            raise BrowserError("the browser has ended") from None


class Page:
    """A page of a browser.

    Attributes:
        requests: The addresses that were asked for, in order, that of the page first.
        problems: Errors and warnings of the console, of scripts, of the network, and of the page's policy.
        dialogs: What alerts and the like said; they are answered at once.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self._loaded = 0
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.dialogs: list[str] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, for this page."""
        return self._browser.send(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Goes to an address and waits until all of it is loaded."""
        before = self._loaded
        result = self.send("Page.navigate", url=url)
        if "errorText" in result:
            raise BrowserError(f"{url}: {result['errorText']}")
        end = time.monotonic() + PATIENCE
        while self._loaded == before:
            self._browser.read(end)
        # What was logged meanwhile has come once the page has answered.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript, which is awaited; by the protocol, so no policy forbids it."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key, such as ``"Tab"`` or ``"Enter"``."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key)
        common: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({} if text is None else {"text": text}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, file: Path, *, full: bool = False) -> None:
        """Writes a PNG of what is seen, or of the full page, as far as it can draw one."""
        options: dict[str, Any] = {"format": "png"}
        if full:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            size["height"] = min(size["height"], _TALLEST)
            options |= {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        wider: int = self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wider

    def low_contrasts(self, least: float = 4.5) -> list[str]:
        """Texts whose contrast with their background is less than what WCAG asks for, each with its ratio."""
        found: list[str] = self.evaluate(f"({_CONTRASTS})({least})")
        return found

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Takes note of an event."""
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Network.loadingFailed" and not parameters.get("blockedReason"):
            self.problems.append(f"{parameters['type']}: {parameters['errorText']}")
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(parameters["args"])[:500])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(parameters["message"])
            message = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._browser._write(json.dumps({**message, "sessionId": self._session}).encode() + b"\0")


_CONTRASTS = """
least => {
  const parse = text => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    return numbers.length > 3 ? numbers : [...numbers, 1];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map(one => one / 255)
    .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return parse(getComputedStyle(document.documentElement).colorScheme.includes("dark") &&
      matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)");
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const text = walker.currentNode.data.trim().slice(0, 40);
    if (ratio < least) found.add(`${ratio.toFixed(2)} ${element.tagName} ${text}`);
  }
  return [...found];
}
"""


def _high(descriptor: int) -> int:
    """The same descriptor under a number that is not in the way."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return high
