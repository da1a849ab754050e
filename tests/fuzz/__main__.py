"""`python -m tests.fuzz`: fuzz payloads, images, settings, texts and URLs, and print the outcomes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import campaign
from tests.fuzz.targets import TARGETS, Target


def main() -> int:
    """Run the requested campaigns. Exit code 5: an input failed."""
    arguments = _arguments()
    found, table = 0, []
    for name in arguments.target or TARGETS:
        outcome = campaign.run(name, seed=arguments.seed, inputs=arguments.inputs, keep=arguments.keep)
        table.append({"target": name, "inputs": outcome.inputs, "seconds": round(outcome.seconds, 1),
                      "failures": len(outcome.failures), "outcomes": dict(outcome.words.most_common())})  # fmt: skip
        print(_line(table[-1]) if not arguments.json else "", end="", flush=True)
        for failure in outcome.failures:
            print(failure, file=sys.stderr)
        found += len(outcome.failures)
        if arguments.guided:
            found += _guided(TARGETS[name], arguments)
    if arguments.json:
        print(json.dumps(table))
    return 5 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Mutates payloads, images, URLs of settings and of images, and texts from outside, and checks that "
        "each ends in a typed error or a sound result, without a secret or a control character in any message.",
        epilog="An input follows from target, seed and number: the same seed makes the same inputs.",
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one (may be repeated)")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many inputs a target (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which inputs (default %(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-out"), help="folder for inputs that failed")
    parser.add_argument("--guided", action="store_true", help="as many inputs again, guided by coverage (atheris)")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    return parser.parse_args()


def _line(row: dict[str, object]) -> str:
    outcomes = row["outcomes"]
    details = ", ".join(f"{word} {count}" for word, count in outcomes.items()) if isinstance(outcomes, dict) else ""
    return f"{row['target']}: {row['inputs']} inputs in {row['seconds']} s, {row['failures']} failures ({details})\n"


def _guided(target: Target, arguments: argparse.Namespace) -> int:
    """Run libFuzzer over the target, starting from its samples; return how many failures were found."""
    if find_spec("atheris") is None:
        print(
            f"{target.name}: not guided, atheris is not installed (requirements/fuzz.txt; it needs Python 3.11 to 3.13)"
        )
        return 0
    arguments.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="spottmee-fuzz-") as folder:
        for number, data in enumerate(target.corpus()):
            (Path(folder) / str(number)).write_bytes(data)
        log = arguments.keep / f"guided-{target.name}.log"
        began = time.monotonic()
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.guided", target.name,
                 f"-runs={arguments.inputs}", f"-seed={arguments.seed}",
                 "-max_len=200000", "-timeout=30", "-rss_limit_mb=1500", "-verbosity=1", "-close_fd_mask=0",
                 f"-artifact_prefix={arguments.keep}/guided-{target.name}-", folder],
                stdout=output, stderr=output, check=False, env=os.environ | {"PYTHONPATH": os.curdir},
            )  # fmt: skip
        kept = len(list(Path(folder).iterdir()))
    details = "no failures" if done.returncode == 0 else f"ended with {done.returncode}: see {log}"
    print(
        f"{target.name}, guided: {arguments.inputs} inputs in {time.monotonic() - began:.1f} s, {kept} kept, {details}"
    )
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
