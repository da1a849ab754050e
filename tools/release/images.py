"""The images of a release, built by buildah, under one index for each flavour, and pushed to a registry."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tools.image_base import BASE, Engine
from tools.release.source import ReleaseError, Source

NAME = "spottmee-worker"


@dataclass(frozen=True, slots=True)
class Variant:
    """One image: cpu or gpu, for one architecture as Go writes it."""

    flavour: str
    architecture: str

    @property
    def platform(self) -> str:
        """The platform in the form that buildah and containerd use."""
        return f"linux/{self.architecture}"

    def __str__(self) -> str:
        return f"{self.flavour}-{self.architecture}"


# onnxruntime's GPU packages exist for x86-64 alone.
ALL = (Variant("cpu", "amd64"), Variant("cpu", "arm64"), Variant("gpu", "amd64"))


@dataclass(frozen=True, slots=True)
class Registry:
    """Where images and chart go, HOST[:PORT]/FOLDER; `plain` speaks HTTP, for a registry on this machine."""

    address: str
    plain: bool

    @property
    def repository(self) -> str:
        """The images' repository, without a tag."""
        return f"{self.address}/{NAME}"


def tag_of(source: Source, flavour: str) -> str:
    """Return the tag of a flavour's index: the version, with the suffix -gpu where that is what it is for."""
    return source.version if flavour == "cpu" else f"{source.version}-{flavour}"


def build_image(engine: Engine, source: Source, variant: Variant, *, no_cache: bool = False) -> str:
    """Build an image and return its local name. Raises `ReleaseError` with the build's last lines."""
    name = f"localhost/{NAME}:{source.version}-{variant}"
    base = engine.make_base(variant.architecture)
    done = replace(engine, sources=source.folder).build(
        *(["--no-cache"] if no_cache else []),
        image=name,
        BASE=base,
        BUILD_BASE=engine.make_base(),
        FLAVOUR=variant.flavour,
        PLATFORM=variant.platform,
        REVISION=source.commit,
    )
    if done.returncode != 0:
        raise ReleaseError(f"the image {variant} could not be built on {BASE}: {done.stderr.strip()[-2000:]}")
    return name


def push_index(engine: Engine, registry: Registry, source: Source, flavour: str, names: Sequence[str]) -> str:
    """Push one index with the images `names`, and return its digest, sha256:… Raises `ReleaseError`."""
    tag = f"{registry.repository}:{tag_of(source, flavour)}"
    with _index(engine, tag, names), tempfile.NamedTemporaryFile("r") as digest:
        listed = json.loads(engine.buildah("manifest", "inspect", tag))["manifests"]
        if len(listed) != len(names):
            raise ReleaseError(f"{tag} lists {len(listed)} images, not {len(names)}: are two for one architecture?")
        tls = f"--tls-verify={'false' if registry.plain else 'true'}"
        push = ["--all", "--format=oci", f"--digestfile={digest.name}", tls]
        engine.buildah("manifest", "push", *push, tag, f"docker://{tag}")
        pushed = Path(digest.name).read_text().strip()
        if not pushed:  # buildah 1.28 (Debian 12) then exits with 0, and prints no reason
            host = registry.address.partition("/")[0]
            raise ReleaseError(f"{tag} was not pushed: check that {host} answers, and log in: buildah login {host}")
        return pushed


@contextmanager
def root_filesystem(engine: Engine, name: str) -> Iterator[Path]:
    """Mount an image and yield its root file system."""
    yield Path(engine.podman("image", "mount", name))
    engine.podman("image", "unmount", name)


@contextmanager
def _index(engine: Engine, tag: str, names: Sequence[str]) -> Iterator[None]:
    engine.buildah("manifest", "create", tag)
    try:
        for name in names:
            engine.buildah("manifest", "add", tag, f"containers-storage:{name}")
        yield
    finally:
        engine.buildah("manifest", "rm", tag)
