"""Builds and runs images without a Docker engine: with Debian's buildah, podman and runc, in a separate storage.

`python -m tools.image_base` creates the stand-in for the base image in the user's own storage. IMAGE_BASE names
another base for the tests: the real one, if an image registry can be reached.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = os.environ.get("IMAGE_BASE") or "localhost/spottmee-base"
IMAGE = "localhost/spottmee-worker:test"
DATE = 315_532_800  # as in the Makefile
BUILD_SECONDS = 1200
EMULATED_SECONDS = 7200  # a build for another architecture
RUNROOT_CHARACTERS = 50  # what podman before 5.1 allows
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# The relevant contents of python:3.12-slim-bookworm: minimal Debian, Python with venv, certificates; no manuals.
SUITE = "bookworm"
PACKAGES = "usr-is-merged,python3,python3-venv,ca-certificates"
EXCLUDED = ("man", "doc", "locale")


def native_architecture() -> str:
    """Return this machine's architecture as Debian and Go call it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def missing() -> str:
    """Return what this machine lacks for building and running images, and how to get it; empty if nothing."""
    packages = (ROOT / "tests" / "image" / "apt.txt").read_text().split()
    lacking = [name for name in packages if shutil.which(name) is None]
    if os.geteuid() != 0:
        return f"building and running images needs root (sudo make image-test), and {', '.join(packages)}"
    if lacking:
        return f"{', '.join(lacking)} not found: apt-get install --no-install-recommends {' '.join(packages)}"
    return ""


def base_archive(architecture: str) -> Path:
    """Return the archived root file system of the stand-in base, created once per machine (a minute).

    Another `architecture` than this machine's (amd64, arm64) needs arch-test, and qemu-user-static registered.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spottmee-worker"
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"base-{SUITE}-{architecture}.tar"
    with (cache / f"base-{SUITE}-{architecture}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            partial = archive.with_suffix(".partial.tar")
            without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED]
            command = [
                "mmdebstrap", "--quiet", f"--architectures={architecture}", "--variant=apt",
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
                f"--include={PACKAGES}", *without, SUITE, str(partial),
            ]  # fmt: skip
            _succeed(command, env={**os.environ, "SOURCE_DATE_EPOCH": str(DATE)})
            partial.rename(archive)
    return archive


@dataclass(frozen=True, slots=True)
class Limits:
    """The memory limit of a container, without swap on top of it, and the user that it runs as."""

    memory: str = "512m"
    user: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """buildah and podman with one storage, the user's own if `storage` is None; they build the checkout `sources`."""

    storage: Path | None = None
    sources: Path = ROOT
    started: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command line of podman or buildah with this storage."""
        place = []
        if self.storage is not None:
            place = [f"--root={self.storage / 'root'}", f"--runroot={_runroot(self.storage)}"]
        return [program, *place, *arguments]

    def podman(self, *arguments: str) -> str:
        """Return podman's output. Raises `RuntimeError` with its last lines if it fails."""
        return _succeed(self.command("podman", *arguments)).strip()

    def buildah(self, *arguments: str) -> str:
        """Return buildah's output. Raises `RuntimeError` with its last lines if it fails."""
        return _succeed(self.command("buildah", *arguments)).strip()

    def make_base(self, architecture: str = "") -> str:
        """Create the stand-in for the base image, or pull the base that IMAGE_BASE names; return its name."""
        architecture = architecture or native_architecture()
        if not BASE.startswith("localhost/"):
            self.podman("pull", "--quiet", f"--arch={architecture}", BASE)
            return BASE
        name = BASE if architecture == native_architecture() else f"{BASE}-{architecture}"
        archive = base_archive(architecture)
        # Each import creates a new image, for which no layers are cached.
        if name not in self.podman("images", "--format", "{{.Repository}}").splitlines():
            self.podman("import", "--quiet", f"--arch={architecture}", str(archive), name)
        return name

    def build(self, *flags: str, image: str = IMAGE, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `make image` with the base image, and this machine's package index and certificates."""
        buildah = self.command(
            "buildah", "build", "--isolation=chroot", "--network=host", "--layers", f"--timestamp={DATE}"
        )
        with tempfile.TemporaryDirectory() as scratch:
            pip = Path(scratch, "pip.conf")
            pip.write_text(_pip_settings())
            secrets = [f"--secret=id=pip.conf,src={pip}", f"--secret=id=ca.crt,src={CA_BUNDLE}"]
            values = {
                "BUILD": " ".join(buildah),
                "BUILD_FLAGS": " ".join([*secrets, *flags]),
                "BASE": BASE,
                "IMAGE": image,
                **variables,
            }
            return subprocess.run(
                ["make", "--no-print-directory", "image", *(f"{name}={value}" for name, value in values.items())],
                cwd=self.sources,
                capture_output=True,
                text=True,
                timeout=EMULATED_SECONDS if variables.get("PLATFORM") else BUILD_SECONDS,
                check=False,
            )

    def run_in_repository(self, command: Sequence[str]) -> None:
        """Run a command in the repository's root. Raises `RuntimeError` if it fails."""
        _succeed(command, cwd=ROOT)

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], limits: Limits
    ) -> subprocess.Popen[str]:
        """Start a container under the restrictions of a pod: unprivileged user, read-only root, no capabilities."""
        command = self.command(
            "podman", "--cgroup-manager=cgroupfs", "run", "--rm", f"--name={name}",
            "--runtime=runc", "--network=host", "--pull=never",
            "--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges",
            f"--memory={limits.memory}", f"--memory-swap={limits.memory}",
            # podman's defaults may exceed this machine's limits
            "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024",
            *([f"--user={limits.user}"] if limits.user else []),
            *(f"--env={name}={value}" for name, value in environment.items()),
            IMAGE, *arguments,
        )  # fmt: skip
        self.started[name] = subprocess.Popen(
            command,
            cwd=self.storage or tempfile.gettempdir(),  # where conmon leaves an empty file "oom" after an OOM kill
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.started[name]

    def remove_containers(self) -> None:
        """Remove the containers that a failed test left behind."""
        while self.started:
            name, process = self.started.popitem()
            if process.poll() is None:
                self.podman("rm", "--force", "--ignore", "--time=0", name)
                process.communicate()

    def release(self) -> None:
        """Unmount what buildah and podman left mounted, and delete their record of it, like a reboot; keep images."""
        if self.storage is None:
            return
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        ours = (f"{self.storage}/", f"{_runroot(self.storage)}/")
        for place in sorted((place for place in mounts if place.startswith(ours)), reverse=True):
            _succeed(["umount", place])
        shutil.rmtree(_runroot(self.storage), ignore_errors=True)


def _runroot(storage: Path) -> Path:
    """Return the folder for the state of running containers: in `storage`, or in /run where that path is too long."""
    within = storage / "run"
    if len(str(within)) <= RUNROOT_CHARACTERS:
        return within
    return Path("/run", f"spottmee-worker-{hashlib.sha256(str(storage).encode()).hexdigest()[:16]}")


def _pip_settings() -> str:
    index = {name: os.environ.get(f"PIP_{name.upper()}") for name in ("index_url", "extra_index_url")}
    lines = [f"{name.replace('_', '-')} = {value}" for name, value in index.items() if value]
    return "\n".join(["[global]", "cert = /run/secrets/ca.crt", *lines, ""])


def _succeed(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    if done.returncode != 0:
        tail = " | ".join(done.stderr.splitlines()[-8:])
        raise RuntimeError(f"{command[0]} exited with code {done.returncode}: {tail}")
    return done.stdout


def main() -> int:
    """Create the stand-in base in the user's own storage."""
    if lacking := missing():
        print(lacking, file=sys.stderr)
        return 2
    Engine().make_base()
    print(f"created {BASE}; build the image on it with: make image BASE={BASE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
