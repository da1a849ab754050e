"""No part of a URL's password is printed, whatever is wrong with the URL and whichever command reads it."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.cli import main
from tests.fuzz import settings_urls
from tests.fuzz.campaign import make_input
from tests.fuzz.targets import TARGETS
from tests.support import forked

# Every command that reads one of the settings, in the order in which they are tried with each of them.
_COMPARISON = json.dumps({"jobId": "j", "storedIds": ["a"], "selfie": "AAAA"})
COMMANDS = {
    "REDIS_URL": (["dead", "list"], ["dead", "requeue", "--all"], ["status"], ["debug", "--photo", "p", "--local"]),
    "DATABASE_URL": (["sweep"], ["import-legacy", "--model", "m"]),
    "EMBEDDINGS_DATABASE_URL": (["migrate"], ["migrate", "--check"]),
    "RUNNER_FETCH_PROXY_URL": (["debug", "--local", "--photo", "p", "--url", "https://8.8.8.8/x.jpg"],),
}
FIRST = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Settings with which a command ends at once: it waits for nothing and finds no cluster."""
    for name, value in {**FIRST, "RUNNER_CONNECT_TIMEOUT_SECONDS": "0", "KUBECONFIG": str(tmp_path / "none"),
                        "RUNNER_FETCH_CONNECT_TIMEOUT_SECONDS": "0.2",
                        "RUNNER_FETCH_TIMEOUT_SECONDS": "0.5"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield monkeypatch
    assert list(tmp_path.iterdir()) == []


def _cases(name: str) -> list[str]:
    """Return URLs for a setting: one for each special character, and some of the fuzzer's."""
    inputs = [*settings_urls.corpus(), *(make_input(TARGETS["setting"], 5, number) for number in range(400))]
    found = [data.decode("utf-8", "surrogateescape").partition("=") for data in inputs]
    return list(dict.fromkeys(url for variable, _, url in found if variable == name and "\0" not in url))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_shows_a_part_of_a_password(
    name: str, surroundings: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cases = _cases(name)
    assert len(cases) > 80
    leaks, codes = [], set()
    for number, url in enumerate(cases):
        surroundings.setenv(name, url)
        command = COMMANDS[name][number % len(COMMANDS[name])]
        codes.add(main(command))
        shown = "".join(capfd.readouterr())
        leaks += [(command, url, shown) for canary in settings_urls.CANARIES if canary in shown]
        assert "Traceback" not in shown, (command, url, shown)
        assert name in shown or command[0] == "debug", (command, url, shown)
    assert leaks == []
    assert codes <= {2, 5, 75}
    assert 2 in codes


@pytest.mark.parametrize("special", ["/", "#", "?"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_unencoded_character_is_named_as_the_cause(name: str, special: str) -> None:
    """The whole program, `run` and `doctor` included, with its termination log."""
    url = f"{settings_urls.VARIABLES[name][0]}://user:S3cretPrefix{special}S3cretSuffix@127.0.0.1:1/0"
    environment = {**os.environ, **FIRST, name: url, "RUNNER_CONNECT_TIMEOUT_SECONDS": "0", "RUNNER_LOG_LEVEL": "debug"}
    for command in ("run", "doctor"):
        done = forked.run([command], env=environment, capture_output=True, text=True, check=False)
        shown = done.stdout + done.stderr
        assert done.returncode == 2, shown
        assert "S3cret" not in shown
        assert f"{name} is malformed" in shown
        assert "%-encoded" in shown


class _Echo(socketserver.StreamRequestHandler):
    """Answers as Redis or PostgreSQL does, with an error that repeats what it was sent."""

    def handle(self) -> None:
        sent = self.request.recv(4096, socket.MSG_PEEK)
        if sent.startswith(b"*"):
            self.wfile.write(b"-ERR WRONGPASS cannot do " + b" ".join(sent.split()) + b"\r\n")
            return
        self.rfile.read(int.from_bytes(sent[:4], "big"))
        self.wfile.write(b"R\0\0\0\x08\0\0\0\x03")  # a cleartext password, please
        size = int.from_bytes(self.rfile.read(5)[1:], "big") - 4
        message = b"SFATAL\0C28P01\0Mpassword authentication failed, not " + self.rfile.read(size) + b"\0"
        self.wfile.write(b"E" + (len(message) + 4).to_bytes(4, "big") + message)


@pytest.mark.parametrize("command", ["run", "doctor", "sweep", "migrate", "status", "dead"])
def test_a_password_that_a_server_repeats_is_not_shown(command: str) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_address[1]}"
        done = forked.run(
            [command, *(["list"] if command == "dead" else [])],
            env={**os.environ, "REDIS_URL": f"redis://:S3cret%2FPrefix@{place}",
                 "DATABASE_URL": f"postgresql://u:S3cret%2FPrefix@{place}/x?sslmode=disable",
                 "RUNNER_CONNECT_TIMEOUT_SECONDS": "0", "KUBECONFIG": "/dev/null"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        server.shutdown()
    assert done.returncode in (2, 75), done.stderr
    assert "…" in done.stdout + done.stderr
    assert "S3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "source",
    ["https://u:S3cretPrefix/S3cretSuffix@127.0.0.1:1/x.zip", "https://u:S3cretPrefix@127.0.0.1:1/x.zip",
     "http://u:S3cretPrefix#S3cretSuffix@127.0.0.1:1/x.zip", "http://u:S3cretPrefix?S3cretSuffix@127.0.0.1:1/x.zip",
     "ftp://u:S3cretPrefix@h/x.zip", "HTTPS://u:S3cretPrefix@h/x.zip", " https://u:S3cretPrefix@h/x.zip",
     "http://u:S3cretPrefix@[::1/x.zip", "http://u:S3cretPrefix\n@h/x.zip"],
)  # fmt: skip
def test_the_source_url_of_a_model_is_not_shown(source: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["models", "bake", "--pack", "buffalo_l", "--out", str(tmp_path / "x"), "--source", source]
    assert main([*arguments, "--sha256", "0" * 64]) in (2, 4)
    shown = "".join(capfd.readouterr())
    assert "S3cret" not in shown
    assert "--source" in shown
