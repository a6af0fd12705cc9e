"""Measures the library, beside the raw clients and FastStream.

::

    python -m benchmarks compare --short              about two minutes
    python -m benchmarks compare --output results     everything, for about an hour; close everything else
    python -m benchmarks scale --output results
    python -m benchmarks report results/*.json

Run it in a checkout, with ``pip install -e ".[all]" --group bench``. docs/performance.md says how it measures.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import compare, ours, report, scale, scaling
from benchmarks.jobs import JobError
from benchmarks.progress import say
from benchmarks.results import Results, environment, read
from tests.brokers import BrokersError

_SHORT_LOOPS = ("asyncio", "trio")
_SHORT_MEASURES = ("consume", "emit", "latency", "through", "core")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("compare", help="the raw client, the library on every loop, and FastStream, side by side")
    one.add_argument("--transport", nargs="+", choices=compare.TRANSPORTS, default=list(compare.TRANSPORTS))
    one.add_argument("--measure", nargs="+", choices=compare.MEASURES)
    one.add_argument("--without", nargs="+", choices=("raw", "raw-thread", compare.RIVAL), default=[])
    two = commands.add_parser("scale", help="the cost of an event as handlers, middleware, bodies and so on grow")
    two.add_argument("--what", nargs="+", choices=scaling.VALUES, default=list(scaling.VALUES))
    two.add_argument(
        "--transport", choices=compare.TRANSPORTS, default="memory", help="where the backlog waits (default: memory)"
    )
    two.add_argument("--most", type=_positive, default=1_000_000, help="the longest backlog (default: 1,000,000)")
    for command in (one, two):
        command.add_argument("--loop", nargs="+", choices=ours.LOOPS)
        command.add_argument("--events", type=_positive, help="how many; slow measures take a share of them")
        command.add_argument("--rounds", type=_positive)
        command.add_argument("--short", action="store_true", help="few events, one round, two loops: for a first look")
        command.add_argument("--output", type=Path, metavar="FOLDER", help="keep the results here, for `report`")
        command.add_argument("--install-brokers", action="store_true", help="install missing servers with apt-get")
    three = commands.add_parser("report", help="results as Markdown, JSON and plots")
    three.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    three.add_argument("--output", type=Path, metavar="FOLDER", help="also write report.md, report.json and the plots")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            _report(options)
        else:
            return _measure(options)
    except (JobError, BrokersError, ValueError, OSError) as error:
        say(f"{parser.prog}: {error}")
        return 1
    except KeyboardInterrupt:
        say("Stopped; nothing was kept.")
        return 130
    return 0


def _measure(options: argparse.Namespace) -> int:
    """Measures, prints and keeps the results; 1 if anything failed, or nothing was there to measure."""
    options.rounds = options.rounds or (1 if options.short else 3)
    options.loop = options.loop or list(_SHORT_LOOPS if options.short else ours.LOOPS)
    if options.command == "compare":
        options.measure = options.measure or list(_SHORT_MEASURES if options.short else compare.MEASURES)
        options.events = options.events or (3000 if options.short else 50_000)
    else:
        options.events = options.events or (1000 if options.short else 10_000)
    kept = {name: value for name, value in vars(options).items() if name != "output"}
    results = Results(options.command, environment(), kept)
    (compare.compare if options.command == "compare" else scale.scale)(options, results)
    print(report.page([results]))
    for failure in results.failures:
        say(failure)
    if options.output is not None and results.rows:
        file = options.output / f"{options.command}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        results.write(file)
        say(f"Kept in {file}.")
    return int(bool(results.failures) or not results.rows)


def _report(options: argparse.Namespace) -> None:
    many = [read(file) for file in options.results]
    text = report.page(many)
    print(text)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "report.md").write_text(text)
        (options.output / "report.json").write_text(json.dumps([asdict(results) for results in many], indent=1) + "\n")
        for file in report.plots(many, options.output):
            say(f"Drew {file}.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the brokers are stopped
    sys.exit(main())
