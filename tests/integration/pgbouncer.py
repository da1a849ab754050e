"""PgBouncer in front of a real server: the pooler that most deployments have."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from demo.servers import NOBODY, EmbeddedServer

PROGRAM = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")

_CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={upstream}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {directory}/users
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 30
"""


def needed() -> None:
    """Skip the test with a message if PgBouncer is missing."""
    if PROGRAM is None:
        pytest.skip("needs pgbouncer (Debian's package pgbouncer; .ci/run installs it)")


class PgBouncer(EmbeddedServer):
    """A pooler of `mode` (session, transaction, statement) with `size` connections to the server at `upstream`."""

    name = "pgbouncer"

    def __init__(self, upstream: int, mode: str, size: int = 1) -> None:
        super().__init__(None, 0)
        self._upstream, self._mode, self._size = upstream, mode, size

    def url(self, url: str) -> str:
        """Return `url` with this pooler in place of the server."""
        return re.sub(r":\d+/", f":{self.port}/", url, count=1)

    def _start(self) -> None:
        assert PROGRAM is not None
        (self.directory / "users").write_text('"postgres" ""\n')
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                upstream=self._upstream, port=self.port, directory=self.directory, mode=self._mode, size=self._size
            )
        )
        uid = NOBODY if os.geteuid() == 0 else None  # it refuses root
        if uid is not None:
            self.directory.chmod(0o755)
        self._spawn([str(Path(PROGRAM)), str(configuration)], uid)
        self._wait(self._answers)

    def _answers(self) -> bool:
        # Read from its log, not by connecting: if the port was taken in the meantime, another server would answer.
        return b"process up" in self.log.read_bytes()[self._log_start :]
