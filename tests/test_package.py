"""What importing and installing the package brings, and does not bring, with it."""

import subprocess
import sys
from importlib.metadata import metadata, version

OPTIONAL = ("aio_pika", "confluent_kafka", "msgpack", "pika", "redis", "trio", "uvloop")


def test_import_loads_no_optional_package() -> None:
    code = f"import sys, dispytch; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_metadata_is_present() -> None:
    assert version("dispytch")
    assert metadata("dispytch")["License-Expression"] == "Apache-2.0"
