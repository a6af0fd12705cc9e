"""Programs that tests use beside the brokers, and the Debian packages that have them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple


class Tool(NamedTuple):
    """A program that is installed, and that tests start themselves.

    Attributes:
        program: The command to look for on PATH.
        package: What ``apt-get install`` calls what has it.
        elsewhere: A pattern of the paths at which Debian has it, where none of its folders is on PATH.
        before: What the shell is to do, as root, before it is installed.
    """

    program: str
    package: str
    elsewhere: str = ""
    before: str = ""

    def find(self) -> str | None:
        """The path of the program, if it is installed; the newest of several."""
        if (found := shutil.which(self.program)) is not None or not self.elsewhere:
            return found
        # Of a client alone there is the folder, too.
        return max(map(str, Path("/").glob(self.elsewhere.lstrip("/"))), key=_numbers, default=None)


def _numbers(path: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path)]


_SETTINGS = "/etc/postgresql-common/createcluster.conf"

TOOLS: dict[str, Tool] = {
    tool.program: tool
    for tool in (
        Tool("kcat", "kcat"),
        Tool("redis-cli", "redis-tools"),
        Tool("openssl", "openssl"),
        Tool("ps", "procps"),
        Tool("chromium", "chromium"),
        Tool("npm", "npm"),
        Tool(
            "postgres",
            "postgresql",
            elsewhere="/usr/lib/postgresql/*/bin/postgres",
            # The package would make a database cluster, and start it; the tests have their own.
            before=f"mkdir -p $(dirname {_SETTINGS}) && "
            f"{{ [ -e {_SETTINGS} ] || echo 'create_main_cluster = false' >{_SETTINGS}; }}",
        ),
    )
}
