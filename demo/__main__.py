"""`make demo`: the main job on real photos, from one command."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from demo.album import own_album, sample_album
from demo.show import Show
from runner.bake.samples import sample_images
from runner.errors import CheckFailedError, RunnerError


def main() -> int:
    """Run the demonstration and return the exit code: 0 only if everything was as expected."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Real photos through real servers and a real model: upload, match, report. With --album and "
        "--selfie, your own photos, of which nothing is expected.",
    )
    parser.add_argument("--album", type=Path, metavar="FOLDER", help="a folder of JPEG, PNG and WebP files")
    parser.add_argument("--selfie", type=Path, action="append", default=[], metavar="FILE", help="who is looked for")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="FOLDER", help="default: demo-out")
    parser.add_argument("--runners", type=int, default=2, metavar="N", help="at most this many runs a list (default 2)")
    args = parser.parse_args()
    if args.runners < 1:
        parser.error("--runners must be at least 1")
    if args.selfie and not args.album:
        parser.error("SELFIE needs an ALBUM=folder beside it")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        album = own_album(args.album, args.selfie) if args.album else sample_album(sample_images())
        outcome = Show(album, args.out, max_runners=args.runners).run()
        if outcome.faults:
            raise CheckFailedError("; ".join(outcome.faults))
    except RunnerError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; everything that was started has been stopped", file=sys.stderr)
        return 130
    verdict = "every match and every status is the expected one" if album.expected else "done"
    print(f"{verdict}: open {args.out / 'report.html'}")
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
