"""Publishes every row of bad input on every transport, and prints in Markdown what became of it and how soon.

::

    python -m tests.fuzz [--transport NAME]... [--times 20] [--output FILE]

The milliseconds are the median from publishing the bad message to the handling of the good one after it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

import anyio

from tests import brokers
from tests.fuzz.probe import Finding, probing, rows_for
from tests.fuzz.rigs import RIGS, Rig
from tests.fuzz.rows import ROWS, Codec

_TARGET = 100.0
_NONE = "\N{EN DASH}"


async def _find(kind: type[Rig], url: str, times: int) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    codecs: tuple[Codec, ...] = ("json", "msgpack")
    for codec in codecs:
        async with probing(kind(url), codec) as probe:
            for row in rows_for(probe.rig, codec):
                found[row.name] = await probe.one(row, times)
    return found


def _cell(finding: Finding | None, title: str) -> str:
    if finding is None:
        return _NONE
    late = " **late**" if finding.median > _TARGET else ""
    outcome = "**WRONG**" if finding.problems else finding.row.outcome(title)
    return f"{outcome}, {finding.median:.1f} ms{late}"


def main() -> int:
    """Runs it; the exit code is 0 if all became what it should, within 100 ms."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="What becomes of bad input.")
    parser.add_argument("--transport", action="append", default=[], help="only this one, such as memory")
    parser.add_argument("--times", type=int, default=20, help="how often each row is tried")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    logging.getLogger("dispytch").setLevel(logging.CRITICAL)  # each bad message is an error in the log
    wanted = {name.lower() for name in options.transport}
    kinds = [kind for kind in RIGS if not wanted or kind.title.lower() in wanted]
    findings: dict[str, dict[str, Finding]] = {}
    with ExitStack() as stack:
        urls = stack.enter_context(brokers.running(*{kind.broker for kind in kinds if kind.broker is not None}))
        for kind in kinds:
            findings[kind.title] = anyio.run(_find, kind, urls.get(kind.broker or "", ""), options.times)
    lines = [["", *findings], ["---"] * (len(findings) + 1)]
    for row in ROWS:
        cells = [found.get(row.name) for found in findings.values()]
        if any(cells):
            lines.append([row.name, *(_cell(cell, title) for cell, title in zip(cells, findings, strict=True))])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    every = [finding for found in findings.values() for finding in found.values()]
    problems = [problem for finding in every for problem in dict.fromkeys(finding.problems)]
    slowest = max(finding.median for finding in every)
    summary = (
        f"{table}\n\n{len(every)} rows, {options.times} times each; {len(problems)} problems; "
        f"the slowest median is {slowest:.1f} ms, and {_TARGET:g} ms the target.\n"
    ) + "".join(f"- {problem}\n" for problem in problems)
    print(summary)
    if options.output is not None:
        options.output.write_text(summary)
    return int(bool(problems) or slowest > _TARGET)


if __name__ == "__main__":
    sys.exit(main())
