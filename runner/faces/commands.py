"""`spottmee-worker models bake|verify|list`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.settings import default_model_dir


def add_parser(subparsers: Any) -> None:
    """Add `models`."""
    models = subparsers.add_parser(
        "models",
        help="bake, verify and list model packs",
        description="A run needs a baked model pack. InsightFace's weights are licensed for non-commercial research.",
    )
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    bake = actions.add_parser("bake", help="make a pack, and prove it against InsightFace")
    bake.add_argument("--pack", required=True, metavar="NAME|DIR", help="a known pack (models list), or its folder")
    bake.add_argument("--out", type=Path, default=default_model_dir(), metavar="DIR", help="default: where run looks")
    bake.add_argument(
        "--source", default="", metavar="PATH|URL", help="folder, zip, wheel or URL of the original files"
    )
    bake.add_argument("--sha256", default="", help="checksum that the archive must have")
    bake.set_defaults(run=_bake)
    verify = actions.add_parser("verify", help="check a baked pack's checksums and repeat its proof")
    verify.add_argument("folder", type=Path, nargs="?", default=default_model_dir(), metavar="DIR")
    verify.add_argument(
        "--source", default="", metavar="PATH|URL", help="as for bake, for packs that are in no package"
    )
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(run=_verify)
    listing = actions.add_parser("list", help="show the known packs, their sizes and licences")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)


def _bake(args: argparse.Namespace) -> int:
    from runner.faces.bake import bake

    print(f"baking {args.pack}, and proving it against InsightFace", file=sys.stderr)
    manifest = bake(args.pack, args.out, source=args.source, sha256=args.sha256)
    print(f"{manifest.pack} baked to {args.out}: {_told(manifest.proof)}\nlicence: {manifest.licence}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from runner.faces.bake import verify

    proof = verify(args.folder, source=args.source)
    print(json.dumps(proof) if args.json else f"{args.folder} holds what was baked: {_told(proof)}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from runner.faces.bake import KNOWN, LICENCE

    if args.json:
        print(json.dumps([{**asdict(known), "licence": LICENCE} for known in KNOWN.values()], indent=2))
        return 0
    for known in KNOWN.values():
        place = f"wheel {known.wheel}" if known.wheel else "give it with --source"
        print(f"{known.name:<12} {known.megabytes:>4} MB  {known.detector} + {known.recogniser}  ({place})")
    print(f"licence of all: {LICENCE}")
    return 0


def _told(proof: dict[str, Any]) -> str:
    return (
        f"{proof['faces']} faces on {proof['photos']} photos, at most {proof['most_pixels_apart']:g} px and cosine "
        f"{proof['least_cosine']:.7f} from InsightFace"
    )
