"""`spottmee-worker models bake|verify|list`.

`bake` and `verify` import their dependencies themselves, because `list` works without ONNX and InsightFace.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner import output
from runner.bake.catalogue import KNOWN
from runner.cli import COMMANDS
from runner.errors import ModelError
from runner.settings import default_model_dir


def add_parser(subparsers: Any) -> None:
    """Add `models`."""
    models = subparsers.add_parser(
        "models",
        help=COMMANDS["models"].help,
        description="A run needs a baked model pack: two networks of InsightFace, optimised, and verified to give the "
        "same results. InsightFace's weights are licensed for non-commercial research only.",
    )
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_bake(actions)
    _add_verify(actions)
    listing = actions.add_parser("list", help="list the known packs with their sizes and licences")
    listing.add_argument("--json", action="store_true", help="print one JSON array, with the checksums of the files")
    listing.set_defaults(run=_list)


def _add_bake(actions: Any) -> None:
    bake = actions.add_parser(
        "bake",
        help="bake a pack, and verify it against InsightFace",
        description="Bake a pack and verify it: InsightFace's own FaceAnalysis must give the same results on the "
        "sample photos. Otherwise nothing is written.",
        epilog="example: spottmee-worker models bake --pack buffalo_l --source buffalo_l.zip --sha256 … (models "
        "list shows the checksum)",
    )
    bake.add_argument(
        "--pack", required=True, metavar="NAME|DIR", help="a pack of `models list`, or a folder with the original files"
    )
    bake.add_argument(
        "--out",
        type=Path,
        default=default_model_dir(),
        metavar="DIR",
        help="folder to write the pack to (default: the one that run reads)",
    )
    bake.add_argument(
        "--source", default="", metavar="PATH|URL", help="folder, zip file, wheel or URL with the original files"
    )
    bake.add_argument("--sha256", default="", help="SHA-256 of the archive; required for a URL")
    bake.add_argument("--plain", action="store_true", help="skip the graph passes, which are of no use on GPUs")
    bake.add_argument(
        "--portable",
        action="store_true",
        help="omit the graphs tuned for this type of processor, for use on another type, or for a smaller pack",
    )
    bake.add_argument("--json", action="store_true", help="print the manifest as JSON")
    bake.set_defaults(run=_bake)


def _add_verify(actions: Any) -> None:
    verify = actions.add_parser(
        "verify", help="check the checksums of a baked pack, and verify it against InsightFace again"
    )
    verify.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=default_model_dir(),
        metavar="DIR",
        help="folder of the pack (default: the one that run reads)",
    )
    verify.add_argument(
        "--source", default="", metavar="PATH|URL", help="as for bake; required for a pack that no package contains"
    )
    verify.add_argument("--sha256", default="", help="as for bake")
    verify.add_argument("--json", action="store_true", help="print the comparison as one JSON object")
    verify.set_defaults(run=_verify)


def _bake(args: argparse.Namespace) -> int:
    _require_insightface()
    from runner.bake.pipeline import bake  # ONNX and InsightFace, which `list` works without

    output.problem(f"baking {args.pack}, and verifying it against InsightFace")
    manifest = bake(
        args.pack, args.out, source=args.source, sha256=args.sha256, plain=args.plain, portable=args.portable
    )
    if args.json:
        output.lines(manifest.text().splitlines())
    else:
        output.line(f"{manifest.pack} baked to {args.out}: {_proof_summary(manifest.proof)}")
        output.line(f"licence: {manifest.licence}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    _require_insightface()
    from runner.bake.proof import verify  # as above

    proof = verify(args.folder, source=args.source, sha256=args.sha256)
    output.line(
        output.json_text(proof)
        if args.json
        else f"{args.folder} is unchanged since it was baked, and verified: {_proof_summary(proof)}"
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.json:
        output.document([asdict(known) for known in KNOWN.values()], indent=2)
        return 0
    for known in KNOWN.values():
        output.line(f"{known.name:<12} {known.megabytes:>4} MB  {' or '.join(known.detectors)} + {known.recogniser}")
        place = (
            f"source: the wheel {known.wheel}, or --source"
            if known.wheel
            else "source: no package contains it, pass --source"
        )
        output.line(f"{'':<12} {place}")
        if known.archive_sha256:
            output.line(f"{'':<12} InsightFace's own {known.name}.zip: --sha256 {known.archive_sha256}")
        output.line(f"{'':<12} licence: {known.licence}")
    return 0


def _proof_summary(proof: dict[str, Any]) -> str:
    return (
        f"{proof['faces']} faces on {proof['photos']} photos, at most {proof['most_pixels_apart']:g} px and a cosine "
        f"similarity of at least {proof['least_cosine']:.7f} from InsightFace's"
    )


def _require_insightface() -> None:
    """Raise `ModelError` if the pack cannot be verified, as in the container image."""
    if find_spec("insightface") is None:
        raise ModelError(
            "InsightFace is not installed, and packs are verified against it: run this command where `make setup` has "
            "run, or choose the pack when you build the image (docs/how-to/image.md)"
        )
