"""The distribution's PostgreSQL, which has SSL and streaming replication, and may lack pgvector."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from demo.servers import EmbeddedPostgres


class DebianPostgres(EmbeddedPostgres):
    """A server of the distribution; with `primary` a standby that streams from it, with `certificate` one with SSL."""

    def __init__(self, *, primary: EmbeddedPostgres | None = None, certificate: trustme.LeafCert | None = None) -> None:
        self._primary = primary
        self._certificate = certificate
        super().__init__()

    def _binaries(self) -> Path:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_basebackup"))
        if not found:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        return found[-1].parent

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._primary is not None:
            self._copy(self._primary)
        if self._certificate is not None:
            self._settings += self._ssl(self._certificate)
        super()._start()

    def _copy(self, primary: EmbeddedPostgres) -> None:
        command = [str(self._binaries() / "pg_basebackup"), "-D", str(self.data), "-R", "-c", "fast", "-d", primary.url]
        subprocess.run(command, check=True, capture_output=True)
        for path in (self.data, *self.data.rglob("*")):
            self._give(path)

    def _ssl(self, certificate: trustme.LeafCert) -> Sequence[str]:
        key, chain = self.directory / "key.pem", self.directory / "certificate.pem"
        certificate.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
        key.chmod(0o600)
        for path in (key, chain):
            self._give(path)
        return ["ssl=on", f"ssl_cert_file={chain}", f"ssl_key_file={key}"]

    def _give(self, path: Path) -> None:
        if self._uid is not None:
            os.chown(path, self._uid, self._uid)
