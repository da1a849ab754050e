"""`make demo`: the whole service on real photos, with one command."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo.album import own_album, sample_album
from demo.show import Demonstration
from runner.bake.samples import sample_images
from runner.errors import CheckFailedError, RunnerError


def main() -> int:
    """Run the demonstration and return the exit code: 0 only if every result is the expected one."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Upload real photos, process them on real servers with a real model, match selfies, and write a "
        "report. With --album and --selfie, it uses your own photos and checks no expected result.",
    )
    parser.add_argument("--album", type=Path, metavar="FOLDER", help="a folder of JPEG, PNG or WebP files")
    parser.add_argument(
        "--selfie", type=Path, action="append", default=[], metavar="FILE", help="a selfie of the person to find"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="FOLDER", help="default: demo-out")
    parser.add_argument("--runners", type=int, default=2, metavar="N", help="maximum runs per list (default: 2)")
    args = parser.parse_args()
    if args.runners < 1:
        parser.error("--runners must be at least 1")
    if args.selfie and not args.album:
        parser.error("SELFIE needs an ALBUM: give ALBUM=folder too")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        album = own_album(args.album, args.selfie) if args.album else sample_album(sample_images())
        outcome = Demonstration(album, args.out, max_runners=args.runners).run()
        if outcome.faults:
            raise CheckFailedError("; ".join(outcome.faults))
    except RunnerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; all servers and runners have been stopped", file=sys.stderr)
        return 130
    verdict = "every match and every status is as expected" if album.expected else "done"
    print(f"{verdict}: open {args.out / 'report.html'}")
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
