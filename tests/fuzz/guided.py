"""One target under atheris: libFuzzer keeps the inputs that reach new lines of ours, and our mutations change them.

`python -m tests.fuzz.guided TARGET [libFuzzer options] [corpus folder]`, with atheris installed (`make fuzz` does).
"""

from __future__ import annotations

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["runner.worker.messages", "runner.images"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    target = TARGETS[sys.argv[1]]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if not data or random.random() < 0.05:
            return target.generate(random)[:most]
        if random.random() < 0.5:
            return target.mutate(random, data)[:most]
        return bytes(atheris.Mutate(data, most))

    def check(data: bytes) -> None:
        target.check(data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], check, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
