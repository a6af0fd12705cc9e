"""Events per second on real brokers: the raw client beside the library on every loop, in one table.

    python -m benchmarks.transports [--transports kafka,streams] [--events 50000] [--rounds 3]

``consume`` handles a backlog of events that waited at the broker, body validated, acknowledged at least once, from the
first to the last handled event (on Pub/Sub, which keeps nothing: what another process publishes). ``emit`` is
``emit_many`` in batches of 1,000, everything confirmed, beside the raw client that pipelines prepared bytes. Each
measurement is taken in a process of its own, the contenders take turns, and the figures are medians; the ratio to the
raw client in brackets. The brokers are started for the measurement (see ``python -m tests.brokers``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from benchmarks import ours, raw
from tests import brokers

TRANSPORTS = {"kafka": "kafka", "rabbitmq": "rabbitmq", "streams": "redis", "pubsub": "redis"}
"""Each transport with its broker."""
CONTENDERS = ("raw", "asyncio", "uvloop", "trio", "blocking")
MEASURES = ("consume", "emit")


def url_for(transport: str, url: str) -> str:
    return url.replace("redis://", "redis+stream://", 1) if transport == "streams" else url


def measure(transport: str, measure: str, contender: str, url: str, count: int) -> float:
    """Events per second, in this process."""
    topic, group = f"bench-{uuid4().hex[:8]}", f"bench-{uuid4().hex[:8]}"
    if measure == "emit":
        ours.declare(url, topic, group)
        if contender != "raw":
            return count / ours.emit_many(contender, url, topic, count)
        emit: Callable[..., float] = getattr(raw, f"{transport}_emit")
        return count / emit(url, topic, ours.messages_of(url, topic, count))
    fill: Callable[[], Any] = partial(_fill, transport, url, topic, count)
    if transport != "pubsub":
        ours.declare(url, topic, group)
        fill()
        fill = _nothing
    if contender != "raw":
        return count / ours.consume(contender, url, topic, group, count, fill)
    if transport == "pubsub":
        return count / raw.pubsub_consume(url, topic, group, count, fill)
    consume: Callable[..., float] = getattr(raw, f"{transport}_consume")
    return count / consume(url, topic, group, count)


def _nothing() -> None: ...


def _fill(transport: str, url: str, topic: str, count: int) -> None:
    _here("--fill", transport, topic, "--url", url, "--events", str(count))


def _here(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.transports", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)  # noqa: S603 - itself
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transports", default=",".join(TRANSPORTS), help="some of them, with commas between")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--measures", default=",".join(MEASURES))
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--fill", nargs=2, metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        transport, topic = options.fill
        getattr(raw, f"{transport}_emit")(options.url, topic, ours.messages_of(options.url, topic, options.events))
    elif options.one:
        transport, what, contender = options.one
        print(json.dumps(measure(transport, what, contender, options.url, options.events)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    transports, contenders = options.transports.split(","), options.contenders.split(",")
    print(f"python {sys.version.split()[0]}, {options.events:,} events, {options.rounds} rounds, events/s (x raw)\n")
    print(f"| transport | measure | {' | '.join(contenders)} |")
    print("|---|---|" + "---|" * len(contenders), flush=True)
    for transport in transports:
        with brokers.running(TRANSPORTS[transport], install=True) as urls:
            url = url_for(transport, urls[TRANSPORTS[transport]])
            for what in options.measures.split(","):
                rates: dict[str, list[float]] = {contender: [] for contender in contenders}
                for _ in range(options.rounds):
                    for contender, found in rates.items():
                        one = _here("--one", transport, what, contender, "--url", url, "--events", str(options.events))
                        found.append(json.loads(one))
                medians = {contender: statistics.median(found) for contender, found in rates.items()}
                cells = [
                    f"{rate:,.0f} ({rate / medians['raw']:.2f})" if "raw" in medians else f"{rate:,.0f}"
                    for rate in medians.values()
                ]
                print(f"| {transport} | {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
