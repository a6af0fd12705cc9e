"""``dispytch health``: whether a service is alive or ready, for probes that run a command. Imports no event loop."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from dispytch.cli.app import Command
from dispytch.cli.errors import CheckFailed, UsageProblem

__all__ = ["command"]


@click.command("health", cls=Command)
@click.argument("target", metavar="FILE|URL")
@click.option("--ready", is_flag=True, help="Ask whether it is ready, and not only alive.")
@click.option(
    "--max-age",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds after which the heartbeat of a file is too old.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds that a URL has to answer.",
)
def command(target: str, ready: bool, max_age: float, timeout: float) -> None:
    """Tell whether a service is alive, by its heartbeat FILE or at its URL.

    FILE is that of `dispytch run --heartbeat`, and URL such as http://127.0.0.1:8080 of `dispytch run --http`.
    """
    if "://" in target:
        reasons = _problems_at(target, "/readyz" if ready else "/livez", timeout)
    else:
        reasons = _problems_in(Path(target), "ready" if ready else "alive", max_age)
    if reasons:
        raise CheckFailed("; ".join(reasons))
    click.echo("ok")


def _problems_in(path: Path, question: str, max_age: float) -> Sequence[str]:
    try:
        age = time.time() - path.stat().st_mtime
        told: Any = json.loads(path.read_bytes())
        reasons = [str(reason) for reason in told[question]["reasons"]]
    except FileNotFoundError:
        return [f"there is no heartbeat {path}: the service has not started, or has ended"]
    except OSError as error:
        return [f"the heartbeat {path} cannot be read: {error.strerror}"]
    except (ValueError, KeyError, TypeError):
        return [f"{path} is no heartbeat of dispytch"]
    if age > max_age:
        return [f"the last heartbeat is {age:.0f} s old: the service is stuck, or was killed"]
    return reasons


def _problems_at(url: str, page: str, timeout: float) -> Sequence[str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise UsageProblem(f"this is no URL ({error}); write it as http://127.0.0.1:8080") from None
    if parts.scheme != "http" or not host or parts.username is not None:
        raise UsageProblem("the health of a service is told at a URL such as http://127.0.0.1:8080")
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", parts.path if parts.path not in ("", "/") else page)
        response = connection.getresponse()
        body = response.read()
    except TimeoutError:
        return [f"{host}, port {port}, has not answered within {timeout:g} s: its event loop is stuck"]
    except (OSError, http.client.HTTPException) as error:
        return [f"{host}, port {port}, does not answer: {error}"]
    finally:
        connection.close()
    if response.status == http.client.OK:
        return []
    try:
        told: Any = json.loads(body)
        reasons = [str(reason) for reason in told["reasons"]]
    except (ValueError, KeyError, TypeError):
        reasons = []
    return reasons or [f"{host}, port {port}, answers {response.status} {response.reason}"]
