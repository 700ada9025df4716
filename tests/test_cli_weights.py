"""`tf-alexnet weights`: what it prints, what it refuses, and the page beside the weights."""

import json
import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from mirrors import serving
from onnx_seeds import export, torch
from trained import trained_layer
from weight_seeds import channels_first, small_arrays

import tf_alexnet as ta
from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import UsageError
from tf_alexnet.weights import (
    LayerArrays,
    Source,
    WeightArrays,
    catalog,
    find_weights,
    inspect_weights,
    known_weights,
)
from tf_alexnet.weights.deploy import deploy_prototxt as prototxt
from tf_alexnet.weights.identify import fingerprints

CATALOG_MODULE = sys.modules[known_weights.__module__]
README = (ROOT / "weights" / "README.md").read_text()
CONVS = known_weights("torchvision-convs").sources[0]


@pytest.fixture
def run(run):
    """Run `tf-alexnet weights` in this process; returns (exit code, stdout, stderr)."""
    return lambda *arguments: run("weights", *arguments)


pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The embedded convolutions as a Caffe model, published as bvlc_alexnet by a local mirror."""
    made = tmp_path / "made.caffemodel"
    ta.write_weights(ta.read_weights(find_weights("torchvision-convs")), made)
    with serving(made.read_bytes()) as server:
        mirror = f"http://127.0.0.1:{server.server_address[1]}/good/bvlc_alexnet.caffemodel"
        record = replace(
            known_weights("bvlc_alexnet"),
            architecture="torchvision",
            sources=(
                Source(
                    "bvlc_alexnet.caffemodel",
                    (mirror,),
                    made.stat().st_size,
                    f"sha256:{inspect_weights(made).sha256}",
                ),
                Source("bvlc_alexnet.npy"),
            ),
            fingerprint="torchvision",
        )
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (record, known_weights("torchvision")))
        monkeypatch.delenv("TF_ALEXNET_OFFLINE")
        yield record


def pairs(out):
    """The indented lines `key  value` of some output."""
    return dict(re.findall(r"^  (\S+) +(.+)$", out, flags=re.M))


def test_list(run, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "bvlc-alexnet.npy").write_bytes(b"x")
    code, out, err = run("list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == {"name", *(record.name for record in catalog())}
    assert re.search(
        r"243,862,414 +sha256 +unrestricted use +57\.1 +80\.2 +weights/bvlc-alexnet\.npy$",
        lines["bvlc_alexnet"],
    )
    assert lines["places365"].endswith("-")
    assert "  unverified  " in lines["places365"]
    assert "note: published accuracies" in err
    code, out, _ = run("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["torchvision-convs"]["path"].endswith(CONVS.file_name)
    assert rows["caffenet"]["path"] is None
    assert rows["caffenet"]["published"][0]["top1"] == 57.4


def test_fetch_tells_what_was_fetched(run, stand_in, tmp_path):
    code, out, err = run("fetch", "imagenet", "--to", "here")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "here/bvlc_alexnet.caffemodel"
    said = pairs(out)
    assert said["size"] == f"{stand_in.sources[0].size:,} bytes"
    assert said["checksum"] == f"{stand_in.sources[0].checksum} (verified)"
    assert said["licence"] == "unrestricted use"
    assert said["origin"] == stand_in.sources[0].urls[0]
    assert out.count("  accuracy  top-1 5") == 2
    assert said["next"] == (
        "tf-alexnet predict PHOTOS --weights here/bvlc_alexnet.caffemodel"
    )  # fmt: skip
    assert run("fetch", "imagenet")[1].splitlines()[-1].endswith("--weights imagenet")
    (tmp_path / "here" / "bvlc_alexnet.caffemodel").write_bytes(b"short")
    code, out, err = run("fetch", "imagenet", "--to", "here")
    assert (code, out) == (3, "")
    assert re.fullmatch(r"error: here/bvlc\S+: 5 bytes, but .* has .*\. Delete it .*\n", err)


def test_fetch_of_the_embedded_file_and_refusals(run, tmp_path):
    code, out, _ = run("fetch", "torchvision-convs", "--to", tmp_path)
    assert code == 0
    assert pairs(out)["next"].startswith("tf-alexnet extract PHOTOS --weights /")
    assert ta.read_weights(tmp_path / CONVS.file_name).architecture == "torchvision"
    for arguments, expected, text in (
        (("fetch", "caffenet"), 3, "TF_ALEXNET_OFFLINE is set"),
        (("fetch", "vgg"), 3, "neither a file nor a name"),
        (
            ("fetch", "torchvision-convs", "--to", "/dev/null/x"),
            4,
            "not a directory. Name a writable folder",
        ),
        (("inspect", "gone.npy"), 3, "neither a file nor a name"),
        (("inspect", tmp_path), 3, "a folder"),
        (
            ("inspect", "caffenet"),
            3,
            "not on this machine. Run `tf-alexnet weights fetch caffenet`",
        ),
        (("verify", "imagenet"), 3, "not on this machine. Run `tf-alexnet weights fetch imagenet`"),
        (("convert", "gone.npy", "x.npy"), 3, "neither a file nor a name"),
        (("convert", "caffenet", "x.npy"), 3, "TF_ALEXNET_OFFLINE is set"),
        (("verify", "gone.npy"), 3, "neither a file nor a name"),
        (("verify", CONVS.file_name, "--photos", "nowhere"), 2, "not a folder"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (expected, ""), arguments
        assert re.fullmatch(rf"error: .*{text}.*\.\n", err), (arguments, err)


def test_unverified_files_are_called_so(run, monkeypatch, tmp_path):
    monkeypatch.delenv("TF_ALEXNET_OFFLINE")
    with serving(find_weights("torchvision-convs").read_bytes()) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}/good/bvlc-alexnet.npy"
        record = replace(
            known_weights("udacity-npy"), sources=(Source("bvlc-alexnet.npy", (url,)),)
        )
        monkeypatch.setattr(CATALOG_MODULE, "_CATALOG", (record, known_weights("torchvision")))
        assert pairs(run("fetch", "udacity-npy")[1])["checksum"] == "unverified: none is published"
    _, out, _ = run("verify", "udacity-npy")
    assert re.search(r"^- +checksum +unverified: no checksum is published$", out, re.M)
    assert "WRONG  fingerprint" in out
    _, _, err = run("inspect", "udacity-npy")
    assert "note: unverified: no checksum is published for udacity-npy" in err


def test_inspect_as_text_and_json(run):
    path = find_weights("torchvision-convs")
    code, out, err = run("inspect", "torchvision-convs")
    assert run("inspect", path) == (code, out, err)
    assert (code, err) == (0, "")
    said = pairs(out)
    assert said["sha256"] == CONVS.checksum.removeprefix("sha256:")
    assert said["is"] == "torchvision-convs (by sha256)"
    assert said["biases"] == "at most 5e-07 from those of torchvision"
    assert (said["architecture"], said["preset"]) == ("torchvision", "torchvision")
    assert said["conv2"].split() == ["5x5x64x192", "192", "307,392"]
    assert said["total"] == "2,469,696"
    code, out, _ = run("inspect", path, "--json")
    found = json.loads(out)
    assert found["identity"]["how"] == "sha256"
    assert found["digest"] == ta.read_weights(path).digest
    assert found["layers"][0] == ["conv1", [11, 11, 3, 64], [64], 23296]
    assert found["metadata"]["licence"] == "BSD-3-Clause"
    assert found["warnings"] == []
    assert [check["passed"] for check in found["checks"]] == [True] * 4


def test_inspect_says_what_is_known_of_a_conversion(run):
    run("convert", "torchvision-convs", "x.npz")
    assert pairs(run("inspect", "x.npz")[1])["is"] == (
        "torchvision, convolutions only (by fingerprint: biases of conv1 to conv5, "
        "kernels of conv1 to conv5)"
    )


def shapes_of(table, network=None, **changes):
    """Convolutions in a network's shapes that pass for those of `network`, or of no known one."""
    layers = {}
    for name, shapes in ARCHITECTURES[table].until("pool5").parameter_shapes().items():
        known = network and name in fingerprints()[network]
        kernel, bias = np.float32(0), np.float32(0.25)  # broadcast, they take no memory
        blank = map(np.broadcast_to, (kernel, bias), shapes)
        layers[name] = trained_layer(network, name) if known else LayerArrays(*blank)
    layers.update(changes)
    return {name: x for name, x in layers.items() if x}


CONV3 = fingerprints()["caffenet"]["conv3"].astype(np.float32)
HOLED = LayerArrays(np.full((3, 3, 256, 384), np.nan, np.float32), CONV3)
FC8 = LayerArrays(np.zeros((4096, 1000), np.float32), np.zeros(1000, np.float32))
EXTRA = LayerArrays(np.zeros((1000, 2), np.float32), np.zeros(2, np.float32))
WARNED = {
    "look-alike": (
        (shapes_of("caffenet"), None),
        ["pass --architecture", "unknown origin"],
    ),
    "own word": (
        (shapes_of("caffenet"), "caffenet"),
        ["only the file's own record says that it is caffenet", "unknown origin"],
    ),
    "false word": (
        (shapes_of("caffenet", "caffenet"), "bvlc_alexnet"),
        ["it records bvlc_alexnet, but by its convolutions it is caffenet"],
    ),
    "holes": (
        (shapes_of("caffenet", "caffenet", conv3=HOLED), "caffenet"),
        ["conv3 kernel: 884736 of 884736 values are NaN or infinite"],
    ),
    "missing and extra": (
        (shapes_of("caffenet", "caffenet", fc8=FC8, fc9=EXTRA), None),
        ["fc7 is missing", "ignored, as AlexNet has no such layers: fc9"],
    ),
    "foreign": (
        ({"conv1": LayerArrays(np.zeros((7, 7, 3, 64)), np.zeros(64))}, None),
        ["not AlexNet; as torchvision: conv2 is missing", "unknown origin"],
    ),
    "known": ((shapes_of("bvlc_alexnet", "bvlc_alexnet"), None), []),
}


@pytest.mark.parametrize("case", WARNED)
def test_inspect_warns(run, monkeypatch, tmp_path, case):
    (layers, architecture), expected = WARNED[case]
    arrays = WeightArrays(layers, architecture, "x.caffemodel")
    (tmp_path / "x.caffemodel").write_bytes(b"\n\x01x")
    monkeypatch.setattr("tf_alexnet.weights.formats.read_file", lambda _: arrays)
    code, _, err = run("inspect", "x.caffemodel")
    assert code == 0
    notes = err.splitlines()
    assert len(notes) == len(expected), err
    for note, text in zip(notes, expected, strict=True):
        assert note.startswith("note: ")
        assert text in note


def test_formats_are_named_by_content(tmp_path):
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    small = WeightArrays({"conv1": arrays.layers["conv1"]})
    for suffix, name in (
        (".npy", "NumPy dictionary (.npy)"),
        (".npz", "NumPy archive (.npz)"),
        (".h5", "HDF5 (.h5)"),
        (".caffemodel", "Caffe model (.caffemodel)"),
        (".safetensors", "safetensors"),
    ):
        ta.write_weights(small, tmp_path / f"x{suffix}")
        (tmp_path / f"x{suffix}").rename(tmp_path / "nameless")
        assert inspect_weights(tmp_path / "nameless").format == name
    table = ARCHITECTURES["torchvision"].until("pool5")
    model = export(table, channels_first(arrays), torch)
    (tmp_path / "nameless").write_bytes(model.SerializeToString())
    found = inspect_weights(tmp_path / "nameless")
    assert (found.format, found.identity.name) == ("ONNX", "torchvision")
    assert found.digest == arrays.digest


def test_convert_keeps_arrays_and_record(run, tmp_path):
    source = find_weights("torchvision-convs")
    arrays = ta.read_weights(source)
    for target, form in (
        *(("a.npy", "dict"), ("a.npz", None), ("a.h5", "caffe"), ("a.caffemodel", None)),
    ):
        code, out, err = run("convert", source, target, *(["--form", form] if form else []))
        assert (code, err) == (0, "")
        assert out.startswith(f"{target}: 5 layers, read back equal, {arrays.digest}\n")
        said = pairs(out)
        assert said["architecture"] == said["preset"] == "torchvision"
        assert said["licence"] == "BSD-3-Clause"
        assert said["origin"].startswith("alexnet-owt-7be5be79.pth")
        assert said["origin_digest"] == arrays.digest
        again = ta.read_weights(target)
        assert again.digest == arrays.digest
        assert again.metadata["origin_digest"] == arrays.digest
        # At the second step the first origin is still told.
        run("convert", target, "b.safetensors")
        assert ta.read_weights("b.safetensors").metadata["origin"] == said["origin"]


def test_convert_records_the_network_and_takes_a_classifier(run, tmp_path):
    """An architecture the file doesn't tell, an extra layer, and one of two classifiers."""
    small = small_arrays(3)
    fc8 = small.layers["fc8"]
    layers = {**small.layers, "fc8_mine": LayerArrays(fc8.kernel[:, :3], fc8.bias[:3])}
    ta.write_weights(WeightArrays(layers), "two.npz")
    code, _, err = run("convert", "two.npz", "one.npz", "--classifier", "fc8_mine")
    assert (code, err) == (0, "")
    assert ta.read_weights("one.npz").classes == 3
    code, _, err = run("convert", "two.npz", "both.npz")
    assert err == "note: not written, as AlexNet has no such layers: fc8_mine\n"
    code, _, err = run("convert", "two.npz", "x.npz", "--classifier", "conv1")
    assert code == 3
    assert "no such dense layer after fc7" in err
    layers = shapes_of("caffenet")
    ta.write_weights(WeightArrays(layers), "look-alike.npz")
    assert "architecture" not in pairs(run("convert", "look-alike.npz", "a.npz")[1])
    said = pairs(run("convert", "look-alike.npz", "b.npz", "--architecture", "caffenet")[1])
    assert (said["architecture"], said["preset"]) == ("caffenet", "caffe")
    assert ta.read_weights("b.npz").architecture == "caffenet"
    (tmp_path / "deploy.prototxt").write_text(prototxt(ARCHITECTURES["caffenet"].with_classes(3)))
    run("convert", "look-alike.npz", "d.npz", "--architecture", "deploy.prototxt")
    assert ta.read_weights("d.npz").metadata["preset"] == "caffe"
    assert ta.read_weights("d.npz").architecture == "caffenet"
    code, _, err = run("convert", "b.npz", "c.npz", "--architecture", "bvlc_alexnet")
    assert code == 3
    assert "these are caffenet weights" in err


def test_convert_downloads(run, stand_in, tmp_path):
    code, out, _ = run("convert", "imagenet", "x.npz")
    assert code == 0
    assert pairs(out)["licence"] == "unrestricted use"
    assert (tmp_path / "cache" / "bvlc_alexnet.caffemodel").is_file()


def test_form_of_a_format_without_forms_is_refused_by_the_library(tmp_path):
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    with pytest.raises(UsageError, match="one form only"):
        ta.write_weights(arrays, tmp_path / "x.npz", form="list")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".caffemodel"])
def test_a_model_is_written_as_its_arrays(tmp_path, suffix):
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    model = ta.AlexNet(arrays, include_top=False)
    ta.write_weights(model, tmp_path / f"x{suffix}")
    again = ta.read_weights(tmp_path / f"x{suffix}")
    assert again.digest == arrays.digest
    assert (again.architecture, again.metadata["preset"]) == ("torchvision", "torchvision")


def test_convert_refuses_itself_and_leaves_old_files_alone(run, tmp_path):
    source = tmp_path / "a.safetensors"
    ta.write_weights(small_arrays(), source)
    (tmp_path / "link.npy").symlink_to(source)
    before = source.read_bytes()
    (tmp_path / "old.npz").write_bytes(b"old")
    (tmp_path / "page.npy").write_text("<html>")
    (tmp_path / "folder.npy").mkdir()
    for arguments, expected, text in (
        ((source, "a.safetensors"), 2, "that is the source file"),
        ((source, "link.npy"), 2, "that is the source file"),
        ((source, "x.bin"), 2, "no weight format has the suffix"),
        ((source, "old.npz", "--form", "list"), 2, "one form only"),
        ((source, "x.npy", "--form", "rows"), 2, "there is no such form"),
        (("page.npy", "old.npz"), 3, "an HTML"),
        ((source, "page.npy/x.npy"), 4, "it can't be written"),
        ((source, "folder.npy"), 4, "it can't be written"),
    ):
        code, out, err = run("convert", *arguments)
        assert (code, out) == (expected, ""), (arguments, err)
        assert re.fullmatch(rf"error: .*{text}.*\.\n", err), err
    assert source.read_bytes() == before
    assert (tmp_path / "old.npz").read_bytes() == b"old"
    names = {"a.safetensors", "link.npy", "old.npz", "page.npy", "folder.npy"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert run("convert", source, "old.npz")[0] == 0
    assert ta.read_weights("old.npz").digest == ta.read_weights(source).digest


def test_verify_ends_in_an_exit_code(run, tmp_path):
    code, out, err = run("verify", "torchvision-convs")
    assert (code, err) == (0, "")
    names = ("checksum", "arrays", "fingerprint", "record")
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", name] for name in names]
    arrays = ta.read_weights(find_weights("torchvision-convs"))
    holed = LayerArrays(arrays.layers["conv5"].kernel * np.nan, arrays.layers["conv5"].bias)
    path = tmp_path / "x.npz"
    ta.write_weights(replace(arrays, layers={**arrays.layers, "conv5": holed}), path)
    code, out, err = run("verify", path)
    assert code == 3
    assert "WRONG  arrays       conv5 kernel: 589824 of 589824 values are NaN" in out
    assert err == f"error: {path}: wrong: arrays. Get the file again from its publisher.\n"
    code, out, _ = run("verify", path, "--json")
    assert code == 3
    assert [check["passed"] for check in json.loads(out)] == [None, False, True, True]


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.M | re.S)


def test_page_beside_the_weights_is_true(run, stand_in, tmp_path):
    """Its commands in their order, then its Python, on a file that a mirror here serves."""
    for folder in ("weights", "photos"):
        (tmp_path / folder).mkdir()
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert {command[2] for command in commands} == {
        "list",
        "fetch",
        "inspect",
        "verify",
        "convert",
    }
    for command in commands:
        assert command[:2] == ["tf-alexnet", "weights"]
        code, out, err = run(*command[2:])
        assert code == 0, (command, err)
        assert out
    (program,) = blocks("python")
    exec(program, {})
    digests = {ta.read_weights(path).digest for path in (tmp_path / "weights").iterdir()}
    assert len(digests) == 1
    assert len(list((tmp_path / "weights").iterdir())) == 4
