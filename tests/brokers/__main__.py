"""The command: ``python -m tests.brokers up | down | status | url``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ._catalog import SERVERS
from ._errors import BrokersError
from ._manager import Manager, names_or_all, parse_ports, without_password

EPILOG = """\
environment:
  DISPYTCH_TEST_<NAME>_URL  use this server, and start none
  DISPYTCH_<NAME>_PORT      the port for `up`, like --port
  DISPYTCH_BROKERS_DIR      keep all state in this folder instead of .brokers
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    manager = Manager()
    try:
        if options.command == "up":
            ports = parse_ports(options.port)
            for name in names_or_all(options.names):
                manager.up(name, install=options.install, docker=options.docker, port=ports.get(name))
                _print_status(manager, name)
        elif options.command == "down":
            for name in names_or_all(options.names):
                print(f"{name}: {'stopped' if manager.down(name) else 'was not running'}")
        elif options.command == "status":
            for name in names_or_all(options.names):
                _print_status(manager, name)
        else:
            url = manager.status(options.name).url
            if url is None:
                raise BrokersError(
                    f"{options.name} does not run: start it with `python -m tests.brokers up {options.name}`."
                )
            print(url)
    except BrokersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_status(manager: Manager, name: str) -> None:
    status = manager.status(name)
    details = [without_password(status.url)] if status.url is not None else []
    if status.pid is not None:
        details.append(f"pid {status.pid}")
    if status.state == "external":
        details.append(f"from DISPYTCH_TEST_{name.upper()}_URL")
    print(f"{name}: {status.state}" + (f" ({', '.join(details)})" if details else ""))


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(SERVERS)
    parser = argparse.ArgumentParser(
        prog="python -m tests.brokers",
        description=f"Real brokers on 127.0.0.1 for tests and examples: {names}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start brokers that do not run yet; they stay until `down`")
    up.add_argument("names", nargs="*", metavar="NAME", help=f"{names}; all of them by default")
    up.add_argument("--install", action="store_true", help="install a missing server with apt-get")
    up.add_argument("--docker", action="store_true", help="start containers from docker-compose.yml instead")
    up.add_argument("--port", action="append", default=[], metavar="NAME=PORT", help="a free port by default")
    down = commands.add_parser("down", help="stop what `up` started, and what killed test runs left")
    down.add_argument("names", nargs="*", metavar="NAME")
    status = commands.add_parser("status", help="say what runs, and where")
    status.add_argument("names", nargs="*", metavar="NAME")
    url = commands.add_parser("url", help="print the address of a running broker, and nothing else")
    url.add_argument("name", metavar="NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
