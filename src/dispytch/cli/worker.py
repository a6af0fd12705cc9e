"""A worker process of ``dispytch run``; its only argument is its options, as JSON.

Its standard input is a pipe that ends with its supervisor: a worker whose supervisor was killed drains, as after
SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

from dispytch.cli.errors import sole
from dispytch.cli.serving import RunOptions, report, serve

__all__ = ["follow_supervisor", "main"]


def main() -> None:
    """Runs it, and exits."""
    options = RunOptions(**json.loads(sys.argv[1]))
    follow_supervisor()
    try:
        code = serve(options)
    except Exception as error:
        code = report(sole(error), options)
    sys.exit(code)


def follow_supervisor() -> None:
    """Has SIGTERM come to this process when its supervisor has ended, however that came about."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        os.read(lifeline, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="dispytch supervisor's end", daemon=True).start()


if __name__ == "__main__":
    main()
