"""Model packs: baked from every kind of source, proven, and rejected when anything about them is wrong."""

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
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from demo.album import jpeg
from demo.images import ImageServer
from runner.bake import originals as networks
from runner.bake import pipeline, proof, sources
from runner.bake.catalogue import KNOWN
from runner.bake.samples import sample_images
from runner.errors import CheckFailedError, ModelError, SettingsError
from runner.faces import pack
from runner.faces.engine import Engine
from tests.support import tiny_models
from tests.support.engine_tools import MODEL, analyse, assert_same, expected, forget, originals
from tests.support.run_tools import Service

TUNED = bool(pack.read_manifest(MODEL).tuned_for)
OTHER_BLAS = {"OPENBLAS_CORETYPE": "Prescott"} if TUNED else {}  # a CPU for tuned graphs has newer kernels too
needs_tuned = pytest.mark.skipif(not TUNED, reason="packs have no tuned graphs for this kind of CPU")


@pytest.fixture(autouse=True, scope="module")
def _forgotten() -> Iterator[None]:
    yield
    forget()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the baked default pack, to be damaged."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / pack.MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put_in(folder: Path, role: str, path: Path) -> None:
    """Make `path`, which contains its weights, the only graph of this role, with its checksum in the manifest."""
    files = {"file": path.name, "sha256": sha256(path), "weights": "", "weights_sha256": ""}
    alone = {"portable": files, "tuned": None, "heads": "", "heads_sha256": ""}
    change_manifest(folder, lambda document: document[role].update(alone))


# Damage to a pack


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed_byte(folder: Path) -> None:
    flip(folder / "recogniser.onnx")


def changed_byte_of_external_data(folder: Path) -> None:
    flip(folder / "detector.weights")


def changed_byte_of_a_tuned_graph(folder: Path) -> None:
    flip(folder / "recogniser.tuned.onnx")


def changed_byte_of_tuned_external_data(folder: Path) -> None:
    flip(folder / "recogniser.tuned.weights")


def changed_byte_of_heads(folder: Path) -> None:
    flip(folder / "detector.heads.npy")


def missing_heads(folder: Path) -> None:
    (folder / "detector.heads.npy").unlink()


def heads_of_another_detector(folder: Path) -> None:
    np.save(folder / "detector.heads.npy", np.zeros((3, 9 * 80 + 1, 28), np.float32))
    digest = sha256(folder / "detector.heads.npy")
    change_manifest(folder, lambda document: document["detector"].update(heads_sha256=digest))


def heads_that_are_not_a_numpy_file(folder: Path) -> None:
    (folder / "detector.heads.npy").write_text("not a NumPy file")
    digest = sha256(folder / "detector.heads.npy")
    change_manifest(folder, lambda document: document["detector"].update(heads_sha256=digest))


def heads_missing_in_the_manifest(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"].update(heads="", heads_sha256=""))


def truncated_graph(folder: Path) -> None:
    path = folder / "detector.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def missing_graph(folder: Path) -> None:
    (folder / "recogniser.onnx").unlink()


def missing_tuned_external_data(folder: Path) -> None:
    (folder / "recogniser.tuned.weights").unlink()


def missing_manifest(folder: Path) -> None:
    (folder / pack.MANIFEST).unlink()


def missing_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def unreadable_manifest(folder: Path) -> None:
    (folder / pack.MANIFEST).unlink()
    (folder / pack.MANIFEST).mkdir()  # root can read any file, but not a folder as one


def unreadable_graph(folder: Path) -> None:
    (folder / "detector.onnx").unlink()
    (folder / "detector.onnx").mkdir()


def a_file_in_place_of_the_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def swapped_files(folder: Path) -> None:
    (folder / "detector.onnx").rename(folder / "x")
    (folder / "recogniser.onnx").rename(folder / "detector.onnx")
    (folder / "x").rename(folder / "recogniser.onnx")


def roles_swapped_in_the_manifest(folder: Path) -> None:
    change_manifest(
        folder, lambda document: document.update(detector=document["recogniser"], recogniser=document["detector"])
    )


def damaged_manifest(folder: Path) -> None:
    path = folder / pack.MANIFEST
    path.write_text(path.read_text()[:-20])


def manifest_that_is_a_list(folder: Path) -> None:
    (folder / pack.MANIFEST).write_text("[1, 2]")


def manifest_without_a_field(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"]["portable"].pop("sha256"))


def manifest_with_an_unknown_field(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(more=1))


def another_format(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(format=1))


def path_outside_of_the_folder(folder: Path) -> None:
    change_manifest(folder, lambda document: document["detector"]["portable"].update(file="../model/detector.onnx"))


def other_embedding_size(folder: Path) -> None:
    change_manifest(folder, lambda document: document.update(embedding_size=128))


def other_embedding_size_in_the_graph_only(folder: Path) -> None:
    put_in(folder, "recogniser", tiny_models.recogniser(folder / "tiny.onnx", size=128))


def detector_with_other_outputs(folder: Path) -> None:
    put_in(folder, "detector", tiny_models.detector(folder / "tiny.onnx", side=640, outputs=6))


def detector_of_another_size(folder: Path) -> None:
    put_in(folder, "detector", tiny_models.detector(folder / "tiny.onnx", side=320))


def graph_that_is_text(folder: Path) -> None:
    (folder / "text.onnx").write_text("not a graph")
    put_in(folder, "detector", folder / "text.onnx")


DAMAGE_TO_TUNED = (changed_byte_of_a_tuned_graph, changed_byte_of_tuned_external_data, missing_tuned_external_data)
DAMAGE: dict[Callable[[Path], None], str] = {
    changed_byte: "has changed since it was baked: its checksum differs",
    changed_byte_of_external_data: "has changed since it was baked: its checksum differs",
    changed_byte_of_a_tuned_graph: "has changed since it was baked: its checksum differs",
    changed_byte_of_tuned_external_data: "has changed since it was baked: its checksum differs",
    changed_byte_of_heads: "has changed since it was baked: its checksum differs",
    missing_heads: r"detector.heads.npy cannot be read \(No such file or directory\)",
    heads_of_another_detector: r"detector.heads.npy does not fit detector.onnx",
    heads_that_are_not_a_numpy_file: r"detector.heads.npy is not a NumPy file",
    heads_missing_in_the_manifest: "is not an SCRFD detector of 640 pixels",
    truncated_graph: "has changed since it was baked: its checksum differs",
    missing_graph: r"recogniser.onnx cannot be read \(No such file or directory\)",
    missing_tuned_external_data: r"recogniser.tuned.weights cannot be read \(No such file or directory\)",
    missing_manifest: "there is no manifest.json in",
    missing_folder: "there is no manifest.json in",
    unreadable_manifest: r"cannot be read \(Is a directory\)",
    unreadable_graph: r"cannot be read \(Is a directory\)",
    a_file_in_place_of_the_folder: r"cannot be read \(Not a directory\)",
    swapped_files: "has changed since it was baked: its checksum differs",
    roles_swapped_in_the_manifest: "is not an SCRFD detector",
    damaged_manifest: "is damaged",
    manifest_that_is_a_list: "is damaged",
    manifest_without_a_field: "is damaged",
    manifest_with_an_unknown_field: "is damaged",
    another_format: "was written by another version",
    path_outside_of_the_folder: "names files outside its folder",
    other_embedding_size: "produces embeddings of 128 numbers, but the database holds 512",
    other_embedding_size_in_the_graph_only: "produces embeddings of 128 numbers, but the database holds 512",
    detector_with_other_outputs: "is not an SCRFD detector of 640 pixels",
    detector_of_another_size: "is not an SCRFD detector of 640 pixels",
    graph_that_is_text: "onnxruntime rejects",
}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage, marks=needs_tuned if damage in DAMAGE_TO_TUNED else (), id=damage.__name__)
        for damage in DAMAGE
    ],
)
def test_a_damaged_pack_is_rejected(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=DAMAGE[damage]):
        Engine.open(copy, threads=1)


@needs_tuned
def test_graphs_tuned_for_another_machine_are_never_run(copy: Path) -> None:
    """They would give wrong numbers without an error: blocks of 8 would be read as blocks of 16."""
    with Engine.open(copy, threads=1) as engine:
        assert engine.tuned
    change_manifest(copy, lambda document: document.update(tuned_for="onnxruntime 1.0, x86-64, blocks of 8"))
    (copy / "detector.tuned.onnx").write_text("a run that opened it would fail")
    files = {"file": "detector.tuned.onnx", "sha256": sha256(copy / "detector.tuned.onnx")}
    change_manifest(copy, lambda document: document["detector"]["tuned"].update(files))
    with Engine.open(copy, threads=1) as engine:
        assert not engine.tuned
        image = sample_images()["yaoming.jpg"]
        assert_same(expected(image), analyse(engine, image), "yaoming")


def test_an_unknown_cpu_runs_the_portable_graphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.faces.engine.blocked_layout", lambda _: "")
    change_manifest(copy, lambda document: document.update(tuned_for=""))
    with Engine.open(copy, threads=1) as engine:
        assert not engine.tuned


@pytest.mark.parametrize("damage", [changed_byte, missing_graph, damaged_manifest, other_embedding_size])
def test_a_run_with_a_damaged_pack_exits_with_4(service: Service, copy: Path, damage: Callable[[Path], None]) -> None:
    """With and without jobs; a job stays in the queue for another run."""
    damage(copy)
    with ImageServer({"photo.jpg": jpeg(sample_images()["yaoming.jpg"])}) as images:
        for job in (False, True):
            if job:
                photo = service.api.upload({"photo.jpg": images.url("photo.jpg")})["photo.jpg"]
            ended = service.command("run", RUNNER_MODEL_DIR=str(copy))
            assert ended.code == 4, ended.errors
            assert ended.summary["exit_reason"] == "model"
            assert "Traceback" not in ended.errors
        service.run()
    assert service.status(photo) == "READY"
    assert service.leftovers() == {}


def test_doctor_reports_the_pack_and_the_provider(service: Service, copy: Path) -> None:
    assert service.command("migrate").code == 0
    fine = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in fine}
    assert findings["model"]["message"] == (
        "buffalo_sc (w600k_mbf), unchanged since it was baked; "
        "licence: InsightFace model weights: non-commercial research purposes only"
    )
    assert findings["hardware"]["message"].startswith("cpu (this onnxruntime does not have cuda), 2 crops per call")
    assert findings["hardware"]["message"].endswith(f", {'tuned graphs' if TUNED else 'portable graphs'}")
    change_manifest(copy, lambda document: document.update(tuned_for="onnxruntime 1.0, x86-64, blocks of 8"))
    found = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in found}
    assert "portable graphs, which load 20 ms more slowly" in findings["hardware"]["message"]
    assert findings["hardware"]["message"].endswith("(onnxruntime 1.0, x86-64, blocks of 8)")
    change_manifest(copy, lambda document: document.update(versions={"onnxruntime": "1.0"}, form="plain"))
    found = json.loads(service.command("doctor", "--json", RUNNER_MODEL_DIR=str(copy)).output)
    findings = {check["name"]: check for check in found}
    assert "verified with other versions than these (onnxruntime " in findings["model"]["message"]
    assert findings["hardware"]["message"].endswith("; the pack was baked plain; quick is faster on cpu")
    changed_byte(copy)
    failed = service.command("doctor", RUNNER_MODEL_DIR=str(copy))
    assert failed.code == 4
    assert "its checksum differs" in failed.output


@pytest.mark.parametrize("providers", ["tpu", "cuda"])
def test_a_missing_provider_is_a_settings_error_in_the_pods_status(
    service: Service, providers: str, tmp_path: Path
) -> None:
    message = tmp_path / "termination-log"
    message.touch()  # as the kubelet does
    ended = service.command("run", RUNNER_PROVIDERS=providers, RUNNER_TERMINATION_LOG=str(message))
    assert ended.code == 2, ended.errors
    assert "RUNNER_PROVIDERS" in ended.errors
    summary = json.loads(message.read_text())
    assert summary["exit_reason"] == "settings"
    assert "RUNNER_PROVIDERS" in summary["exit_message"]


# Baking


@contextmanager
def served(content: bytes) -> Iterator[str]:
    """Serve `content` at /pack.zip on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/pack.zip")
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(content if found else b"")

        def log_message(self, *_: object) -> None:
            """Write no log."""

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


def without_proof(folder: Path) -> dict[str, Any]:
    """Return the manifest, with the checksums of all files, but without the similarities that BLAS has computed."""
    document: dict[str, Any] = json.loads((folder / pack.MANIFEST).read_text())
    del document["proof"]
    return document


def test_bake_from_a_url_gives_the_same_bytes_whatever_cpu_blas_is_for_and_no_warnings(tmp_path: Path) -> None:
    """The pack in `MODEL` was baked with the kernels for this CPU: with SSE, BLAS rounds in another order."""
    archive = zipped(tmp_path / "a.zip", default_files("models/sc/"))
    with served(archive.read_bytes()) as place:
        source = ["--source", f"{place}/pack.zip", "--sha256", sha256(archive)]
        out = tmp_path / "out"
        baked = command("bake", "--pack", "buffalo_sc", "--out", str(out), *source, **OTHER_BLAS)
    assert baked.returncode == 0, baked.stderr
    assert baked.stdout.startswith("buffalo_sc baked to")
    assert baked.stderr == "baking buffalo_sc, and verifying it against InsightFace\n"  # no warning of a library
    manifest = pack.read_manifest(out)
    assert (manifest.pack, manifest.model, manifest.form) == ("buffalo_sc", "w600k_mbf", "quick")
    assert manifest.proof["faces"] == 34
    graphs = ["detector", "recogniser", *(["detector.tuned", "recogniser.tuned"] if TUNED else [])]
    expected = {f"{graph}.{kind}" for graph in graphs for kind in ("onnx", "weights")} | {
        "manifest.json",
        "detector.heads.npy",
    }
    assert {path.name for path in out.iterdir()} == expected
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert without_proof(out) == without_proof(MODEL)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_url_needs_the_checksum_of_its_content(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", default_files("models/sc/"))
    with served(archive.read_bytes()) as place:
        bake_from = partial(pipeline.bake, "buffalo_sc", tmp_path / "no")
        with pytest.raises(SettingsError, match="URL needs --sha256"):
            bake_from(source=f"{place}/pack.zip")
        with pytest.raises(ModelError, match="is a different file"):
            bake_from(source=f"{place}/pack.zip", sha256="0" * 64)
        with pytest.raises(ModelError, match="its server answered 404"):
            bake_from(source=f"{place}/other", sha256="0" * 64)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("url", ["http://user:secret@127.0.0.1:1/pack.zip", "http://user:secret@[bad/pack.zip",
                                 "https://secret@127.0.0.1:1", "https://:@127.0.0.1:1?secret"])  # fmt: skip
def test_a_url_with_credentials_is_refused_without_repeating_them(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="must contain no user name or password") as caught:
        pipeline.bake("buffalo_sc", tmp_path / "out", source=url, sha256="0" * 64)
    assert "secret" not in str(caught.value)


def test_a_url_that_cannot_be_downloaded_is_not_repeated(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1/pack@secret.zip", "http://[bad/secret.zip", "http://user:sec/ret@127.0.0.1/a"):
        with pytest.raises(ModelError, match="could not be downloaded") as caught:
            pipeline.bake("buffalo_sc", tmp_path / "out", source=url, sha256="0" * 64)
        assert "sec" not in str(caught.value)


def test_bake_from_a_folder_with_other_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    for name, path in default_files().items():
        shutil.copy(path, folder / f"my_{name}")
    (folder / "readme.txt").write_text("not a graph")
    tiny_models.recogniser(folder / "landmarks.onnx", side=192)  # packs contain further models
    manifest = pipeline.bake(str(folder), tmp_path / "out", plain=True)
    assert (manifest.pack, manifest.model, manifest.form) == ("ours", "my_w600k_mbf", "plain")
    with pytest.raises(ModelError, match="ours is not a known pack: give its original files with --source"):
        proof.verify(tmp_path / "out")
    assert proof.verify(tmp_path / "out", source=str(folder))["faces"] == 34
    assert not list((tmp_path / "out").glob("*tuned*"))  # GPUs have no blocked layout
    graph = onnx.load(tmp_path / "out/recogniser.onnx")
    assert "PRelu" in {node.op_type for node in graph.graph.node}
    shutil.copy(tiny_models.recogniser(tmp_path / "t.onnx"), folder / "my_w600k_mbf.onnx")
    with pytest.raises(ModelError, match="is a different file"):
        proof.verify(tmp_path / "out", source=str(folder))


@pytest.fixture
def failing_bake(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Return a bake that must fail; afterwards the pack that was there before must be unchanged, and alone."""
    out = tmp_path / "out/model"
    shutil.copytree(MODEL, out)
    before = (out / pack.MANIFEST).stat()

    def attempt(name: str, **options: Any) -> str:
        with pytest.raises((ModelError, SettingsError, CheckFailedError)) as caught:
            pipeline.bake(name, out, **options)
        return str(caught.value)

    yield attempt
    assert (out / pack.MANIFEST).stat() == before
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_wrong_packs_and_sources_are_rejected(tmp_path: Path, failing_bake: Callable[..., str]) -> None:
    sc, other = str(originals()), str(tmp_path / "archive.zip")
    zipped(Path(other), default_files())
    assert "the source does not contain det_10g.onnx: is it the right pack?" in failing_bake("buffalo_l", source=sc)
    assert "the source does not contain det_10g.onnx: is it the right pack?" in failing_bake("buffalo_l", source=other)
    assert "no package contains antelopev2" in failing_bake("antelopev2")
    assert (
        "nonsense is neither a known pack (buffalo_sc, buffalo_s, buffalo_l, antelopev2) nor a folder"
        in failing_bake("nonsense")
    )
    assert "neither a folder nor a file" in failing_bake("buffalo_l", source=str(tmp_path / "nothing"))
    assert "is a different file" in failing_bake("buffalo_sc", source=other, sha256="1" * 64)
    assert "64 hexadecimal digits" in failing_bake("buffalo_sc", source=other, sha256="12")
    assert "--sha256 is the checksum of an archive" in failing_bake("buffalo_sc", source=sc, sha256="1" * 64)
    assert "--sha256 is the checksum of an archive" in failing_bake("buffalo_sc", sha256="1" * 64)


def test_known_files_with_another_content_are_rejected(tmp_path: Path, failing_bake: Callable[..., str]) -> None:
    for name, path in default_files().items():
        shutil.copy(path, tmp_path / name)
    changed = tmp_path / "w600k_mbf.onnx"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    assert "w600k_mbf.onnx is a different file: its sha256 is" in failing_bake("buffalo_sc", source=str(tmp_path))
    changed.unlink()
    assert "the source does not contain w600k_mbf.onnx" in failing_bake("buffalo_sc", source=str(tmp_path))


def test_damaged_archives_are_rejected(tmp_path: Path, failing_bake: Callable[..., str]) -> None:
    text, damaged = tmp_path / "text.zip", tmp_path / "damaged.zip"
    text.write_text("not an archive")
    content = bytearray(zipped(damaged, default_files()).read_bytes())
    content[5_000_000] ^= 1
    damaged.write_bytes(content)
    for path in (text, damaged):
        assert "is not a zip archive or wheel, or is damaged" in failing_bake("buffalo_sc", source=str(path))


def folder_of(folder: Path, **files: Callable[[Path], object]) -> str:
    folder.mkdir()
    for name, make in files.items():
        make(folder / f"{name}.onnx")
    return str(folder)


def test_folders_without_a_pack_are_rejected(tmp_path: Path, failing_bake: Callable[..., str]) -> None:
    small = partial(tiny_models.recogniser, size=128)
    unequal = folder_of(tmp_path / "a", d=tiny_models.detector, r=small)
    assert "produces embeddings of 128 numbers, but the database holds 512" in failing_bake(unequal)
    assert "detector: none; recogniser: r.onnx" in failing_bake(folder_of(tmp_path / "b", r=tiny_models.recogniser))
    twice = folder_of(tmp_path / "c", d=tiny_models.detector, r=tiny_models.recogniser, s=tiny_models.recogniser)
    assert "recogniser: r.onnx, s.onnx" in failing_bake(twice)
    text = folder_of(tmp_path / "d", d=lambda path: path.write_text("not a graph"))
    assert "d.onnx is not an ONNX file" in failing_bake(text)
    assert "detector: none; recogniser: none" in failing_bake(folder_of(tmp_path / "e"))


def test_a_pack_that_finds_no_faces_fails_the_proof(tmp_path: Path, failing_bake: Callable[..., str]) -> None:
    folder = folder_of(tmp_path / "a", d=tiny_models.detector, r=tiny_models.recogniser)
    assert "the baked pack does not give InsightFace's answers: over 0 faces" in failing_bake(folder)


def test_a_pack_with_other_answers_fails_the_proof(copy: Path) -> None:
    """The weights have noise and the manifest fits them: only the proof can notice."""
    path = copy / "recogniser.onnx"
    model = onnx.load(path)
    weights = next(item for item in model.graph.initializer if len(item.dims) == 4 and item.dims[0] == 512)
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(5).normal(1, 0.2, values.shape).astype(np.float32)
    weights.CopyFrom(numpy_helper.from_array(values * noise, weights.name))
    onnx.save(model, copy / "other.onnx")
    put_in(copy, "recogniser", copy / "other.onnx")
    with pytest.raises(CheckFailedError, match="the baked pack does not give InsightFace's answers: over 34 faces"):
        proof.prove(copy, originals())


def test_an_output_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .* choose another --out"):
        pipeline.bake("buffalo_sc", tmp_path / "file/model")


def test_normalisation_is_decided_as_by_insightface(tmp_path: Path) -> None:
    model = onnx.load(tiny_models.recogniser(tmp_path / "r.onnx"))
    assert networks.normalisation(model) == (127.5, 127.5)
    model.graph.node[0].name, model.graph.node[1].name = "Sub_0", "_mulscalar1"
    assert networks.normalisation(model) == (0.0, 1.0)


# The commands


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runner", "models", *arguments],
        env=os.environ | variables, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def test_list_shows_every_known_pack() -> None:
    listed = json.loads(command("list", "--json").stdout)
    assert [one["name"] for one in listed] == list(KNOWN)
    assert all(one["megabytes"] > 0 and "non-commercial" in one["licence"] and one["sha256"] for one in listed)
    text = command("list").stdout
    assert all(name in text for name in KNOWN)


def test_verify_reports_the_proof_and_no_warnings(copy: Path) -> None:
    verified = command("verify", str(MODEL), "--json")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert json.loads(verified.stdout)["faces"] == 34
    changed_byte(copy)
    failed = command("verify", str(copy))
    assert (failed.returncode, failed.stdout) == (4, "")
    assert failed.stderr.count("\n") == 1
    wrong = command("bake", "--pack", "buffalo_l")
    assert wrong.returncode == 4
    assert "pass its folder, archive or URL with --source" in wrong.stderr


def test_the_wheel_contains_the_default_pack() -> None:
    folder = sources.wheel_folder()
    known = KNOWN["buffalo_sc"]
    for name in (known.detectors[0], known.recogniser):
        assert sha256(folder / name) == known.sha256[name]
