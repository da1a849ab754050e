"""`python -m tools.release VERSION`: everything that a release consists of, in one folder and one registry.

Without a registry this is a rehearsal, which pushes to a temporary registry on this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.model.component import Component

from tools import image_base
from tools.image_base import BASE, ROOT, Engine
from tools.release import provenance, sbom
from tools.release.chart import package_chart, push_chart
from tools.release.images import ALL, NAME, Registry, Variant, build_image, push_index, root_filesystem, tag_of
from tools.release.packages import build_packages
from tools.release.registry import local_registry
from tools.release.source import ReleaseError, Source, export
from tools.render import HelmError

_UNPUBLISHED = "https://example.invalid/spottmee-worker"


@dataclass(frozen=True, slots=True)
class Release:
    """What a release is made of, and where it goes: images and chart to `registry`, files to `out`."""

    source: Source
    engine: Engine
    registry: Registry
    out: Path

    def make(self, variants: Sequence[Variant]) -> None:
        """Build and push everything; write packages, SBOMs, provenance, checksums and notes."""
        packages = build_packages(self.source, self.out)
        wheel = packages[0]
        components = sbom.locked(self.source.folder / "requirements" / "run-cpu.txt")
        self._write_sbom(wheel.name, wheel.name, provenance.sha256(wheel), components)
        _say(f"packages: {', '.join(path.name for path in packages)}")
        flavours = sorted({variant.flavour for variant in variants})
        by_flavour = {name: [variant for variant in variants if variant.flavour == name] for name in flavours}
        digests = {name: self._push(name, of_it) for name, of_it in by_flavour.items()}
        architectures = {name: [variant.architecture for variant in of_it] for name, of_it in by_flavour.items()}
        chart = package_chart(self.source, self.registry, digests, architectures, self.out)
        pushed = f"{self.registry.address}/charts/{NAME}:{self.source.version}@{push_chart(self.registry, chart)}"
        _say(f"chart: oci://{pushed}")
        images = [f"{self.registry.repository}:{tag_of(self.source, name)}@{digests[name]}" for name in flavours]
        self._describe([*packages, chart], images, pushed)

    def _push(self, flavour: str, variants: Sequence[Variant]) -> str:
        """Build and push the images of one flavour with their SBOMs; return the digest of their index."""
        names = {variant: build_image(self.engine, self.source, variant) for variant in variants}
        digest = push_index(self.engine, self.registry, self.source, flavour, list(names.values()))
        for variant, name in names.items():
            built = self.engine.podman("image", "inspect", name, "--format", "{{.Digest}}")
            with root_filesystem(self.engine, name) as root:
                file = f"{NAME}-{self.source.version}-{variant}"
                self._write_sbom(file, f"{NAME}-{variant}", built, sbom.installed(root))
        tag = f"{self.registry.repository}:{tag_of(self.source, flavour)}"
        _say(f"image: {tag}@{digest} ({', '.join(map(str, names))})")
        return digest

    def _write_sbom(self, file: str, subject: str, sha256: str, components: Iterable[Component]) -> None:
        path = self.out / f"{file}.cdx.json"
        sbom.write(path, subject=subject, version=self.source.version, sha256=sha256, components=components)

    def _describe(self, files: Sequence[Path], images: Sequence[str], chart: str) -> None:
        """Write the provenance and the checksums of everything; `images` and `chart` are NAME:TAG@DIGEST."""
        pushed = dict(name.split("@") for name in (*images, chart))
        subjects = {path.name: provenance.sha256(path) for path in files} | pushed
        builder = os.environ.get("RELEASE_BUILDER", f"{self.source.url}/Makefile")
        document = provenance.statement(self.source, subjects, builder=builder, base=BASE)
        provenance.write(self.out / "provenance.json", document)
        (self.out / "NOTES.md").write_text(self.source.notes)
        (self.out / "IMAGES").write_text("".join(f"{name}\n" for name in images))
        (self.out / "CHART").write_text(f"{chart}\n")
        written = sorted(self.out.iterdir())
        sums = "".join(f"{provenance.sha256(path)}  {path.name}\n" for path in written)
        (self.out / "SHA256SUMS").write_text(sums)


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a release, and return the exit code: 2 if it cannot be made."""
    options = _parser().parse_args(arguments)
    if lacking := image_base.missing():
        print(lacking, file=sys.stderr)
        return 2
    out = Path(options.out or ROOT / "dist" / options.version)
    if out.exists() and any(out.iterdir()):
        print(f"{out} is not empty: remove it, or name another folder with --out", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _place(options.registry) as registry, tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            final = bool(options.registry)
            source = export(options.version, options.source_url, Path(scratch), final=final)
            engine = Engine(ROOT / ".cache" / "containers")
            stack.callback(engine.release)
            Release(source, engine, registry, out).make(options.images)
    except (ReleaseError, HelmError, RuntimeError) as error:
        print(f"the release was not made: {error}", file=sys.stderr)
        return 2
    print(f"everything is in {out}" + ("" if options.registry else "; nothing was published (REGISTRY=… publishes it)"))
    return 0


@contextmanager
def _place(address: str) -> Iterator[Registry]:
    """Yield the registry to push to: the given one, or a temporary one on this machine for a rehearsal."""
    if address:
        yield Registry(address, plain=False)
    else:
        with tempfile.TemporaryDirectory() as folder, local_registry(Path(folder)) as registry:
            yield registry


def variants_named(names: str) -> tuple[Variant, ...]:
    """Return the images that an option names. Raises `argparse.ArgumentTypeError`."""
    by_name = {str(variant): variant for variant in ALL}
    try:
        return tuple(by_name[name] for name in names.split())
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error.args[0]!r} is not one of {', '.join(by_name)}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    parser.add_argument("version", help="for example 0.2.0")
    parser.add_argument(
        "--registry", default="", help="HOST/FOLDER to publish to; default: a rehearsal on this machine"
    )
    parser.add_argument("--images", type=variants_named, default=ALL, help="default: 'cpu-amd64 cpu-arm64 gpu-amd64'")
    parser.add_argument("--source-url", default=_UNPUBLISHED, help="where the repository is published")
    parser.add_argument("--out", help="default: dist/VERSION")
    return parser


if __name__ == "__main__":
    sys.exit(main())
