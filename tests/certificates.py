"""Certificates of a test's own authority, as strict as Python 3.13 wants them."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


class Certificates:
    """An authority, and what it has signed: a server's certificate, and a client's.

    Args:
        folder: Where the files are made.
        host: What the server is called, as in ``"DNS:localhost"`` or ``"IP:127.0.0.1"``.
    """

    def __init__(self, folder: Path, host: str = "DNS:localhost") -> None:
        self.folder = folder
        self.authority = self._make("authority", "/CN=An authority", "keyUsage=critical,keyCertSign,cRLSign")
        self.server = self._sign("server", "/CN=A server", f"subjectAltName={host}")
        self.client = self._sign("client", "/CN=A client")

    def key(self, certificate: Path) -> Path:
        """The private key of one of them."""
        return certificate.with_suffix(".key")

    def _sign(self, name: str, subject: str, *extensions: str) -> Path:
        signer = ("-CA", str(self.authority), "-CAkey", str(self.key(self.authority)))
        return self._make(name, subject, "basicConstraints=critical,CA:FALSE", *extensions, signer=signer)

    def _make(self, name: str, subject: str, *extensions: str, signer: tuple[str, ...] = ()) -> Path:
        certificate = self.folder / f"{name}.pem"
        added = [text for extension in extensions for text in ("-addext", extension)]
        files = ("-keyout", str(self.key(certificate)), "-out", str(certificate))
        command = ["openssl", "req", "-x509", *_KEY, "-subj", subject, *files, *added, *signer]
        subprocess.run(command, check=True, capture_output=True)
        return certificate
