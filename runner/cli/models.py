"""`spottmee-worker models bake|verify|list`.

`bake` and `verify` import what they need: `list` works where neither ONNX nor InsightFace is installed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runner import output
from runner.bake.catalogue import KNOWN
from runner.errors import ModelError
from runner.settings import default_model_dir


def add_parser(subparsers: Any) -> None:
    """Add `models`."""
    models = subparsers.add_parser(
        "models",
        help="bake, verify and list model packs",
        description="A run needs a baked model pack: InsightFace's two networks, optimised and proven to give the same "
        "answers. InsightFace's weights are licensed for non-commercial research only.",
    )
    actions = models.add_subparsers(dest="action", metavar="ACTION", required=True)
    bake = actions.add_parser(
        "bake",
        help="bake a pack, and prove it against InsightFace",
        description="Bake a pack and prove it: InsightFace's own FaceAnalysis must give the same answers on the sample "
        "photos. Otherwise nothing is written.",
        epilog="example: models bake --pack buffalo_l --source buffalo_l.zip --sha256 … (models list shows it)",
    )
    bake.add_argument("--pack", required=True, metavar="NAME|DIR", help="a known pack (see models list), or a folder")
    bake.add_argument(
        "--out",
        type=Path,
        default=default_model_dir(),
        metavar="DIR",
        help="where to write the pack (default: where run looks for it)",
    )
    bake.add_argument(
        "--source", default="", metavar="PATH|URL", help="folder, zip, wheel or URL of the original files"
    )
    bake.add_argument("--sha256", default="", help="checksum of the archive; required for a URL")
    bake.add_argument("--plain", action="store_true", help="skip the graph passes: for GPUs, where they save nothing")
    bake.add_argument("--json", action="store_true", help="print the manifest")
    bake.set_defaults(run=_bake)
    verify = actions.add_parser("verify", help="check the checksums of a baked pack and repeat its proof")
    verify.add_argument("folder", type=Path, nargs="?", default=default_model_dir(), metavar="DIR")
    verify.add_argument(
        "--source", default="", metavar="PATH|URL", help="as for bake; needed for packs that no package contains"
    )
    verify.add_argument("--sha256", default="", help="as for bake")
    verify.add_argument("--json", action="store_true", help="print what was compared")
    verify.set_defaults(run=_verify)
    listing = actions.add_parser("list", help="show the known packs, their sizes and licences")
    listing.add_argument("--json", action="store_true", help="print one JSON list, with the files' checksums")
    listing.set_defaults(run=_list)


def _bake(args: argparse.Namespace) -> int:
    _require_insightface()
    from runner.bake.pipeline import bake

    output.problem(f"baking {args.pack}, and proving it against InsightFace")
    manifest = bake(args.pack, args.out, source=args.source, sha256=args.sha256, plain=args.plain)
    if args.json:
        output.lines(manifest.text().splitlines())
    else:
        output.line(f"{manifest.pack} baked to {args.out}: {_proof_summary(manifest.proof)}")
        output.line(f"licence: {manifest.licence}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    _require_insightface()
    from runner.bake.proof import verify

    proof = verify(args.folder, source=args.source, sha256=args.sha256)
    output.line(
        output.json_text(proof)
        if args.json
        else f"{args.folder} is unchanged since it was baked: {_proof_summary(proof)}"
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.json:
        output.document([asdict(known) for known in KNOWN.values()], indent=2)
        return 0
    for known in KNOWN.values():
        output.line(f"{known.name:<12} {known.megabytes:>4} MB  {' or '.join(known.detectors)} + {known.recogniser}")
        place = f"from the wheel {known.wheel}, or --source" if known.wheel else "not in a package: needs --source"
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
    """Raise `ModelError` where the proof cannot be made, as in the image."""
    if find_spec("insightface") is None:
        raise ModelError(
            "InsightFace is not installed here, and baking and verifying compare a pack with it: do this where "
            "`make setup` has run, or choose the pack of the image when building it (docs/how-to/image.md)"
        )
