"""Model packs: baked from every kind of source, proven, and refused when anything about them is not as it should be."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from demo.album import jpeg
from demo.images import ImageServer
from runner.errors import CheckFailedError, ModelError, SettingsError
from runner.faces import bake, pack, sources
from runner.faces.engine import Engine
from runner.faces.packs import KNOWN
from tests.support import tiny_models
from tests.support.engine_tools import MODEL, assert_same, expected, originals

if TYPE_CHECKING:
    from tests.support.run_tools import Service


TUNED = bool(pack.read_manifest(MODEL).tuned_for)
needs_tuned = pytest.mark.skipif(not TUNED, reason="for this kind of processor packs have no tuned graphs")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the baked default pack, to be harmed."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / pack.MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put_in(folder: Path, role: str, path: Path) -> None:
    """Make `path`, which has its own weights, the only graph of this role, with its checksum in the manifest."""
    files = {"file": path.name, "sha256": sha256(path), "weights": "", "weights_sha256": ""}
    alone = {"portable": files, "tuned": None, "heads": "", "heads_sha256": ""}
    change_manifest(folder, lambda document: document[role].update(alone))


# What can be wrong with a pack that a run is to load


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed_byte(folder: Path) -> None:
    flip(folder / "recogniser.onnx")


def changed_byte_of_the_weights(folder: Path) -> None:
    flip(folder / "detector.weights")


def changed_byte_of_what_is_tuned(folder: Path) -> None:
    flip(folder / "recogniser.tuned.onnx")


def changed_byte_of_the_tuned_weights(folder: Path) -> None:
    flip(folder / "recogniser.tuned.weights")


def changed_byte_of_the_heads(folder: Path) -> None:
    flip(folder / "detector.heads.npy")


def missing_heads(folder: Path) -> None:
    (folder / "detector.heads.npy").unlink()


def heads_of_another_detector(folder: Path) -> None:
    np.save(folder / "detector.heads.npy", np.zeros((3, 9 * 80 + 1, 28), np.float32))
    digest = sha256(folder / "detector.heads.npy")
    change_manifest(folder, lambda document: document["detector"].update(heads_sha256=digest))


def heads_that_are_no_numbers(folder: Path) -> None:
    (folder / "detector.heads.npy").write_text("no numbers")
    digest = sha256(folder / "detector.heads.npy")
    change_manifest(folder, lambda document: document["detector"].update(heads_sha256=digest))


def heads_that_are_not_named(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"].update(heads="", heads_sha256=""))


def cut_short(folder: Path) -> None:
    path = folder / "detector.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def missing_graph(folder: Path) -> None:
    (folder / "recogniser.onnx").unlink()


def missing_tuned_weights(folder: Path) -> None:
    (folder / "recogniser.tuned.weights").unlink()


def missing_manifest(folder: Path) -> None:
    (folder / pack.MANIFEST).unlink()


def missing_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def unreadable_manifest(folder: Path) -> None:
    (folder / pack.MANIFEST).unlink()
    (folder / pack.MANIFEST).mkdir()  # root reads any file: a folder is what nobody can read as one


def unreadable_graph(folder: Path) -> None:
    (folder / "detector.onnx").unlink()
    (folder / "detector.onnx").mkdir()


def a_file_in_place_of_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def swapped_files(folder: Path) -> None:
    (folder / "detector.onnx").rename(folder / "x")
    (folder / "recogniser.onnx").rename(folder / "detector.onnx")
    (folder / "x").rename(folder / "recogniser.onnx")


def swapped_in_the_manifest_too(folder: Path) -> None:
    change_manifest(
        folder, lambda document: document.update(detector=document["recogniser"], recogniser=document["detector"])
    )


def damaged_manifest(folder: Path) -> None:
    path = folder / pack.MANIFEST
    path.write_text(path.read_text()[:-20])


def manifest_of_a_list(folder: Path) -> None:
    (folder / pack.MANIFEST).write_text("[1, 2]")


def manifest_without_a_field(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"]["portable"].pop("sha256"))


def manifest_with_another_field(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(more=1))


def another_format(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(format=1))


def a_path_out_of_the_folder(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"]["portable"].update(file="../model/detector.onnx"))


def other_embedding_size(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(embedding_size=128))


def other_embedding_size_in_the_graph_alone(folder: Path) -> None:
    put_in(folder, "recogniser", tiny_models.recogniser(folder / "tiny.onnx", size=128))


def a_detector_of_another_kind(folder: Path) -> None:
    put_in(folder, "detector", tiny_models.detector(folder / "tiny.onnx", side=640, outputs=6))


def a_detector_of_another_size(folder: Path) -> None:
    put_in(folder, "detector", tiny_models.detector(folder / "tiny.onnx", side=320))


def no_graph_at_all(folder: Path) -> None:
    (folder / "text.onnx").write_text("this is no graph")
    put_in(folder, "detector", folder / "text.onnx")


HARMS_OF_TUNED = (changed_byte_of_what_is_tuned, changed_byte_of_the_tuned_weights, missing_tuned_weights)
HARMS: dict[Callable[[Path], None], str] = {
    changed_byte: "is not what was baked: its checksum differs",
    changed_byte_of_the_weights: "is not what was baked: its checksum differs",
    changed_byte_of_what_is_tuned: "is not what was baked: its checksum differs",
    changed_byte_of_the_tuned_weights: "is not what was baked: its checksum differs",
    changed_byte_of_the_heads: "is not what was baked: its checksum differs",
    missing_heads: r"detector.heads.npy cannot be read \(No such file or directory\)",
    heads_of_another_detector: r"detector.heads.npy is not for detector.onnx",
    heads_that_are_no_numbers: r"detector.heads.npy is no NumPy file",
    heads_that_are_not_named: "is no SCRFD detector of 640 pixels",
    cut_short: "is not what was baked: its checksum differs",
    missing_graph: r"recogniser.onnx cannot be read \(No such file or directory\)",
    missing_tuned_weights: r"recogniser.tuned.weights cannot be read \(No such file or directory\)",
    missing_manifest: "there is none in",
    missing_folder: "there is none in",
    unreadable_manifest: r"cannot be read \(Is a directory\)",
    unreadable_graph: r"cannot be read \(Is a directory\)",
    a_file_in_place_of_the_folder: r"cannot be read \(Not a directory\)",
    swapped_files: "is not what was baked: its checksum differs",
    swapped_in_the_manifest_too: "is no SCRFD detector",
    damaged_manifest: "is damaged",
    manifest_of_a_list: "is damaged",
    manifest_without_a_field: "is damaged",
    manifest_with_another_field: "is damaged",
    another_format: "was written by another version",
    a_path_out_of_the_folder: "names files outside of its folder",
    other_embedding_size: "makes embeddings of 128 numbers, and the database holds 512",
    other_embedding_size_in_the_graph_alone: "makes embeddings of 128 numbers, and the database holds 512",
    a_detector_of_another_kind: "is no SCRFD detector of 640 pixels",
    a_detector_of_another_size: "is no SCRFD detector of 640 pixels",
    no_graph_at_all: "onnxruntime refuses",
}


@pytest.mark.parametrize(
    "harm",
    [pytest.param(harm, marks=needs_tuned if harm in HARMS_OF_TUNED else (), id=harm.__name__) for harm in HARMS],
)
def test_a_pack_that_is_not_right_is_refused(copy: Path, harm: Callable[[Path], None]) -> None:
    harm(copy)
    with pytest.raises(ModelError, match=HARMS[harm]):
        Engine.open(copy, threads=1)


@needs_tuned
def test_what_was_tuned_for_another_machine_is_never_run(copy: Path) -> None:
    """Its numbers would be wrong without a word: blocks of 8 are read as blocks of 16."""
    with Engine.open(copy, threads=1) as engine:
        assert engine.tuned
    change_manifest(copy, lambda document: document.update(tuned_for="onnxruntime 1.0, x86-64, blocks of 8"))
    (copy / "detector.tuned.onnx").write_text("a run that opened it would fail")
    files = {"file": "detector.tuned.onnx", "sha256": sha256(copy / "detector.tuned.onnx")}
    change_manifest(copy, lambda document: document["detector"]["tuned"].update(files))
    with Engine.open(copy, threads=1) as engine:
        assert not engine.tuned
        image = bake.sample_images()["yaoming.jpg"]
        assert_same(expected(image), engine.analyse(image), "yaoming")


def test_a_machine_of_an_unknown_kind_takes_the_portable_graphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.faces.engine.blocked_layout", lambda _: "")
    change_manifest(copy, lambda document: document.update(tuned_for=""))
    with Engine.open(copy, threads=1) as engine:
        assert not engine.tuned


@pytest.mark.parametrize("harm", [changed_byte, missing_graph, damaged_manifest, other_embedding_size])
def test_the_runner_refuses_to_start_with_it(service: Service, copy: Path, harm: Callable[[Path], None]) -> None:
    """With jobs or without; the job stays for a runner that can do it."""
    harm(copy)
    with ImageServer({"photo.jpg": jpeg(bake.sample_images()["yaoming.jpg"])}) as images:
        for job in (False, True):
            if job:
                photo = service.api.upload({"photo.jpg": images.url("photo.jpg")})["photo.jpg"]
            ended = service.command("run", RUNNER_MODEL_DIR=str(copy))
            assert ended.code == 4, ended.errors
            assert ended.summary["reason"] == "model"
            assert "Traceback" not in ended.errors
        service.run()
    assert service.status(photo) == "READY"
    assert service.leftovers() == {}


def test_doctor_tells_of_it_and_of_what_was_chosen(service: Service, copy: Path) -> None:
    assert service.command("migrate").code == 0
    fine = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in fine}
    assert findings["model"]["finding"] == "buffalo_sc (w600k_mbf), as it was baked"
    assert findings["hardware"]["finding"].startswith("cpu (tensorrt and cuda not in this onnxruntime), 2 crops a call")
    assert findings["hardware"]["finding"].endswith(
        f", {'graphs as tuned when baking' if TUNED else 'portable graphs'}"
    )
    change_manifest(copy, lambda document: document.update(tuned_for="onnxruntime 1.0, x86-64, blocks of 8"))
    told = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in told}
    assert "portable graphs, which open 20 ms more slowly" in findings["hardware"]["finding"]
    assert findings["hardware"]["finding"].endswith("(onnxruntime 1.0, x86-64, blocks of 8)")
    change_manifest(copy, lambda document: document.update(versions={"onnxruntime": "1.0"}, form="plain"))
    told = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in told}
    assert "proven with other versions than here (onnxruntime " in findings["model"]["finding"]
    assert findings["hardware"]["finding"].endswith("; the pack is baked plain, and quick suits cpu better")
    changed_byte(copy)
    harmed = service.command("doctor", RUNNER_MODEL_DIR=str(copy))
    assert harmed.code == 4
    assert "its checksum differs" in harmed.output


@pytest.mark.parametrize("providers", ["tpu", "cuda"])
def test_a_provider_that_is_not_there_is_a_wrong_setting(service: Service, providers: str) -> None:
    ended = service.command("run", RUNNER_PROVIDERS=providers)
    assert ended.code == 2, ended.errors
    assert "RUNNER_PROVIDERS" in ended.errors


# Baking


@contextmanager
def served(content: bytes) -> Iterator[str]:
    """Serve `content` at /pack.zip on loopback, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/pack.zip")
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(content if found else b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def zipped(target: Path, files: dict[str, Path]) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in files.items():
            archive.write(path, name)
    return target


def default_files(prefix: str = "") -> dict[str, Path]:
    return {f"{prefix}{path.name}": path for path in originals().iterdir()}


def test_from_a_url_with_its_checksum(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", default_files("models/sc/"))
    with served(archive.read_bytes()) as place:
        manifest = bake.bake("buffalo_sc", tmp_path / "out", source=f"{place}/pack.zip", sha256=sha256(archive))
        refused = partial(bake.bake, "buffalo_sc", tmp_path / "no")
        with pytest.raises(SettingsError, match="URL needs --sha256"):
            refused(source=f"{place}/pack.zip")
        with pytest.raises(ModelError, match="it is another file"):
            refused(source=f"{place}/pack.zip", sha256="0" * 64)
        with pytest.raises(ModelError, match="its server answered 404"):
            refused(source=f"{place}/other", sha256="0" * 64)
    assert (manifest.pack, manifest.model, manifest.form) == ("buffalo_sc", "w600k_mbf", "quick")
    assert manifest.proof["faces"] == 34
    forms = ["detector", "recogniser", *(["detector.tuned", "recogniser.tuned"] if TUNED else [])]
    expected = {f"{form}.{kind}" for form in forms for kind in ("onnx", "weights")} | {
        "manifest.json",
        "detector.heads.npy",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}
    assert (tmp_path / "out/manifest.json").read_text() == (MODEL / "manifest.json").read_text()  # byte for byte again
    assert not (tmp_path / "no").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


REWRITE = """
import hashlib, sys, onnx
from runner.faces import graphs
model = onnx.load(sys.argv[1])
graphs.fix_input(model, ("faces", 3, 112, 112))
graphs.quicken(model)
print(hashlib.sha256(model.SerializeToString()).hexdigest())
"""


@needs_tuned  # where there is AVX2, that is
def test_a_graph_is_rewritten_to_the_same_bytes_whatever_processor_blas_is_for() -> None:
    """With SSE it rounds in another order than with AVX2."""
    command = [sys.executable, "-c", REWRITE, str(originals() / "w600k_mbf.onnx")]
    told = {
        subprocess.run(
            command, env=os.environ | {"OPENBLAS_CORETYPE": kind}, capture_output=True, text=True, check=True
        ).stdout
        for kind in ("Prescott", "Haswell")
    }
    assert len(told) == 1


def test_a_url_that_leads_nowhere_is_told_without_its_password(tmp_path: Path) -> None:
    for url in ("http://user:secret@127.0.0.1:1/pack.zip", "http://user:secret@[bad/pack.zip"):
        with pytest.raises(ModelError) as caught:
            bake.bake("buffalo_sc", tmp_path / "out", source=url, sha256="0" * 64)
        assert "secret" not in str(caught.value)
        assert "could not be downloaded" in str(caught.value)


def test_from_a_folder_under_a_name_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    for name, path in default_files().items():
        shutil.copy(path, folder / f"my_{name}")
    (folder / "readme.txt").write_text("no graph")
    tiny_models.recogniser(folder / "landmarks.onnx", side=192)  # packs hold further models
    manifest = bake.bake(str(folder), tmp_path / "out", plain=True)
    assert (manifest.pack, manifest.model, manifest.form) == ("ours", "my_w600k_mbf", "plain")
    with pytest.raises(ModelError, match="ours is no known pack: give its original files with --source"):
        bake.verify(tmp_path / "out")
    assert bake.verify(tmp_path / "out", source=str(folder))["faces"] == 34
    assert not list((tmp_path / "out").glob("*tuned*"))  # a GPU has no blocked layout
    graph = onnx.load(tmp_path / "out/recogniser.onnx")
    assert "PRelu" in {node.op_type for node in graph.graph.node}
    shutil.copy(tiny_models.recogniser(tmp_path / "t.onnx"), folder / "my_w600k_mbf.onnx")
    with pytest.raises(ModelError, match="it is another file"):
        bake.verify(tmp_path / "out", source=str(folder))


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Bake what must fail, over a pack that is there already: it must stay, and nothing else be left."""
    out = tmp_path / "out/model"
    shutil.copytree(MODEL, out)
    before = (out / pack.MANIFEST).stat()

    def attempt(name: str, **options: Any) -> str:
        with pytest.raises((ModelError, SettingsError, CheckFailedError)) as caught:
            bake.bake(name, out, **options)
        return str(caught.value)

    yield attempt
    assert (out / pack.MANIFEST).stat() == before
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_a_wrong_pack_or_none(tmp_path: Path, refused: Callable[..., str]) -> None:
    sc, other = str(originals()), str(tmp_path / "archive.zip")
    zipped(Path(other), default_files())
    assert "the source has no det_10g.onnx: is it the right pack?" in refused("buffalo_l", source=sc)
    assert "the source has no det_10g.onnx: is it the right pack?" in refused("buffalo_l", source=other)
    assert "antelopev2 is in no package of the registry" in refused("antelopev2")
    assert "nonsense is no known pack (buffalo_sc, buffalo_s, buffalo_l, antelopev2) and no folder" in refused(
        "nonsense"
    )
    assert "neither a folder nor a file" in refused("buffalo_l", source=str(tmp_path / "nothing"))
    assert "it is another file" in refused("buffalo_sc", source=other, sha256="1" * 64)
    assert "64 hexadecimal digits" in refused("buffalo_sc", source=other, sha256="12")
    assert "--sha256 is that of an archive" in refused("buffalo_sc", source=sc, sha256="1" * 64)
    assert "--sha256 is that of an archive" in refused("buffalo_sc", sha256="1" * 64)


def test_files_of_a_known_name_and_another_content(tmp_path: Path, refused: Callable[..., str]) -> None:
    for name, path in default_files().items():
        shutil.copy(path, tmp_path / name)
    changed = tmp_path / "w600k_mbf.onnx"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert "w600k_mbf.onnx has the sha256" in refused("buffalo_sc", source=str(tmp_path))
    changed.unlink()
    assert "the source has no w600k_mbf.onnx" in refused("buffalo_sc", source=str(tmp_path))


def test_archives_that_are_none(tmp_path: Path, refused: Callable[..., str]) -> None:
    text, damaged = tmp_path / "text.zip", tmp_path / "damaged.zip"
    text.write_text("no archive")
    content = bytearray(zipped(damaged, default_files()).read_bytes())
    content[5_000_000] ^= 1
    damaged.write_bytes(content)
    for path in (text, damaged):
        assert "is no zip archive or wheel, or a damaged one" in refused("buffalo_sc", source=str(path))


def folder_of(folder: Path, **files: Callable[[Path], object]) -> str:
    folder.mkdir()
    for name, make in files.items():
        make(folder / f"{name}.onnx")
    return str(folder)


def test_folders_that_hold_no_pack(tmp_path: Path, refused: Callable[..., str]) -> None:
    small = partial(tiny_models.recogniser, size=128)
    unequal = folder_of(tmp_path / "a", d=tiny_models.detector, r=small)
    assert "makes embeddings of 128 numbers, and the database holds 512" in refused(unequal)
    assert "detector: none; recogniser: r.onnx" in refused(folder_of(tmp_path / "b", r=tiny_models.recogniser))
    twice = folder_of(tmp_path / "c", d=tiny_models.detector, r=tiny_models.recogniser, s=tiny_models.recogniser)
    assert "recogniser: r.onnx, s.onnx" in refused(twice)
    text = folder_of(tmp_path / "d", d=lambda path: path.write_text("no graph"))
    assert "d.onnx is no ONNX file" in refused(text)
    assert "detector: none; recogniser: none" in refused(folder_of(tmp_path / "e"))


def test_a_pack_that_finds_nobody_is_not_proven(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = folder_of(tmp_path / "a", d=tiny_models.detector, r=tiny_models.recogniser)
    assert "the baked pack is not InsightFace's: over 0 faces" in refused(folder)


def test_a_pack_with_other_answers_is_not_proven(copy: Path) -> None:
    """Somewhat other weights, with the manifest made to fit: only the proof can tell."""
    path = copy / "recogniser.onnx"
    model = onnx.load(path)
    weights = next(item for item in model.graph.initializer if len(item.dims) == 4 and item.dims[0] == 512)
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(5).normal(1, 0.2, values.shape).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(values * noise, weights.name))
    onnx.save(model, copy / "other.onnx")
    put_in(copy, "recogniser", copy / "other.onnx")
    with pytest.raises(CheckFailedError, match="the baked pack is not InsightFace's: over 34 faces"):
        bake.prove(copy, originals())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .* give another --out"):
        bake.bake("buffalo_sc", tmp_path / "file/model")


def test_how_recognisers_are_normalised_is_insightfaces(tmp_path: Path) -> None:
    model = onnx.load(tiny_models.recogniser(tmp_path / "r.onnx"))
    assert bake._normalisation(model) == (127.5, 127.5)
    model.graph.node[0].name, model.graph.node[1].name = "Sub_0", "_mulscalar1"
    assert bake._normalisation(model) == (0.0, 1.0)


# The commands


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", "models", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_list() -> None:
    listed = json.loads(command("list", "--json").stdout)
    assert [one["name"] for one in listed] == list(KNOWN)
    assert all(one["megabytes"] > 0 and "non-commercial" in one["licence"] and one["sha256"] for one in listed)
    text = command("list").stdout
    assert all(name in text for name in KNOWN)


def test_verify_and_bake_say_what_they_did_and_nothing_else(tmp_path: Path, copy: Path) -> None:
    verified = command("verify", str(MODEL), "--json")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert json.loads(verified.stdout)["faces"] == 34
    baked = command("bake", "--pack", "buffalo_sc", "--out", str(tmp_path / "out"))
    assert baked.returncode == 0
    assert baked.stdout.startswith("buffalo_sc baked to")
    assert baked.stderr == "baking buffalo_sc, and proving it against InsightFace\n"  # and no warning of a library's
    changed_byte(copy)
    harmed = command("verify", str(copy))
    assert (harmed.returncode, harmed.stdout) == (4, "")
    assert harmed.stderr.count("\n") == 1
    wrong = command("bake", "--pack", "buffalo_l")
    assert wrong.returncode == 4
    assert "give its folder, archive or URL with --source" in wrong.stderr


def test_the_default_pack_is_what_the_wheel_holds() -> None:
    folder = sources.wheel_folder()
    known = KNOWN["buffalo_sc"]
    for name in (known.detectors[0], known.recogniser):
        assert sha256(folder / name) == known.sha256[name]
