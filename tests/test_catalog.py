"""The catalogue against itself, the tables, and the checksum file beside the weights."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.model import AlexNet
from tf_alexnet.weights import (
    convert_weights,
    find_weights,
    identify_weights,
    inspect_weights,
    read_weights,
    verify_weights,
)
from tf_alexnet.weights.catalog import (
    Source,
    catalog,
    file_checksum,
    known_weights,
    mismatch,
    names,
    published_file,
)

CATALOG_MODULE = sys.modules[known_weights.__module__]
REPOSITORY = Path(__file__).parents[1]


def test_sha256sums_is_the_catalogue():
    lines = (REPOSITORY / "weights" / "SHA256SUMS").read_text().splitlines()
    known = [(s.checksum or "", s.file_name) for r in catalog() for s in r.sources]
    sums = (f"{x.removeprefix('sha256:')}  {name}" for x, name in known if x.startswith("sha256:"))
    assert lines == sorted(sums)


def test_embedded_file_is_the_catalogues():
    record = known_weights("torchvision-convs")
    path = REPOSITORY / "tf_alexnet" / "data" / record.sources[0].file_name
    assert mismatch(path, record.sources[0]) is None
    assert published_file(path) is record
    assert path.with_name("NOTICE.torchvision.md").read_text().count("Soumith Chintala 2016") == 1


@pytest.mark.parametrize("record", catalog(), ids=lambda record: record.name)
def test_records_are_sound(record):
    assert record.preset == ARCHITECTURES[record.architecture].preset
    assert record.licence
    lengths = {"sha256": 64, "sha1": 40, "git_blob": 40}
    for source in record.sources:
        for url in source.urls:
            assert url.startswith(("https://", "http://"))
            assert url.endswith("/" + source.file_name)
        if source.checksum:
            algorithm, _, digest = source.checksum.partition(":")
            assert len(digest) == lengths[algorithm]
            assert int(digest, 16)
        else:
            assert not source.urls or "no checksum is published" in record.note
    assert all(a.top1 < a.top5 < 100 for a in record.published)


def test_no_two_records_share_a_name_and_the_published_numbers_stand():
    assert len({record.name for record in catalog()}) == len(catalog())
    published = [(a.top1, a.top5) for a in known_weights("imagenet").published]
    assert published == [(57.1, 80.2), (56.598, 79.812)]
    assert known_weights("imagenet") is known_weights("bvlc_alexnet")
    assert known_weights("imagenet") is known_weights("bvlc_alexnet-npy")
    # 60,965,224 parameters of four bytes and a little framing.
    for name in ("bvlc_alexnet", "caffenet"):
        caffe, onnx, *_ = known_weights(name).sources
        for source, framing in ((caffe, 1518), (onnx, 2891)):
            extra = source.size - 4 * ARCHITECTURES[name].parameters
            assert abs(extra - framing) < 20, source.file_name


def test_spellings_are_the_sources_and_their_conversions():
    assert known_weights("imagenet").file_names == (
        *("bvlc_alexnet.caffemodel", "bvlcalexnet-12.onnx", "bvlc_alexnet.npy"),
        *("bvlc-alexnet.npy", "bvlc_alexnet.safetensors"),
    )
    assert "AlexNet_compressed.safetensors" in known_weights("deep-compression").file_names


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(WeightsError, match=r"'alexnett': neither a file nor") as caught:
        known_weights("alexnett")
    assert all(name in str(caught.value) for name in names())


def test_git_blob_is_gits_own_object_id(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"what is up, doc?")
    # The example of git's own book, and git itself where it is installed.
    assert file_checksum(path, "git_blob") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    path.write_bytes(bytes(range(256)) * 9000)
    try:
        git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    assert file_checksum(path, "git_blob") == git.stdout.strip()


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "git_blob"])
def test_another_size_and_one_flipped_bit_are_told(tmp_path, algorithm):
    path = tmp_path / "weights.bin"
    content = bytearray(b"0123456789" * 1000)
    path.write_bytes(content)
    digest = file_checksum(path, algorithm)
    if algorithm == "sha256":
        assert digest == hashlib.sha256(content).hexdigest()
    source = Source("weights.bin", (), 10_000, f"{algorithm}:{digest}")
    assert mismatch(path, source) is None
    content[5000] ^= 1
    path.write_bytes(content)
    assert f"its {algorithm} is " in mismatch(path, source)
    path.write_bytes(content[:-1])
    assert mismatch(path, source) == "9999 bytes, but weights.bin has 10000"


def test_large_files_are_hashed_again_only_if_they_change(tmp_path, monkeypatch):
    path, hashed = tmp_path / "large", []
    monkeypatch.setattr(CATALOG_MODULE, "_REMEMBERED_BYTES", 100)
    new = hashlib.new
    monkeypatch.setattr(hashlib, "new", lambda name: hashed.append(name) or new(name))

    def checksum():
        before = len(hashed)
        found = file_checksum(path, "sha256")
        assert found == hashlib.sha256(path.read_bytes()).hexdigest()
        return len(hashed) - before

    path.write_bytes(b"0" * 100)
    assert (checksum(), checksum()) == (1, 0)
    os.utime(path, ns=(0, 0))
    assert (checksum(), checksum()) == (1, 0)
    (tmp_path / "other").write_bytes(b"1" * 100)
    os.utime(tmp_path / "other", ns=(0, 0))
    os.replace(tmp_path / "other", path)
    assert (checksum(), checksum()) == (1, 0)
    path.write_bytes(b"0" * 99)
    assert (checksum(), checksum()) == (1, 1), "small files are not worth it"


def test_published_name_and_size_with_other_bytes_are_refused_by_every_reader(tmp_path):
    """Biases alone still look right in such a file."""
    record = known_weights("torchvision-convs")
    name = record.sources[0].file_name
    content = bytearray((REPOSITORY / "tf_alexnet" / "data" / name).read_bytes())
    content[-2] ^= 1  # in the last value
    path = tmp_path / name
    path.write_bytes(content)
    readers = (
        *(find_weights, read_weights, identify_weights, inspect_weights, verify_weights),
        lambda path: convert_weights(path, tmp_path / "x.npz"),
        AlexNet,
    )
    for read in readers:
        with pytest.raises(WeightsError, match=r"its sha256 is .*Delete it and .*rename it if it"):
            read(path)
    path.rename(tmp_path / "mine.safetensors")
    for read in readers[:5]:
        read(tmp_path / "mine.safetensors")


def test_readme_beside_the_weights_lists_every_file_and_mirror():
    text = (REPOSITORY / "weights" / "README.md").read_text()
    for record in catalog():
        assert f"`{record.name}`" in text
        assert record.licence in text
        for source in record.sources if record.name != "torchvision-convs" else ():
            assert f"`{source.file_name}`" in text
            assert not source.size or f"{source.size:,}" in text
            for url in source.urls:
                if "raw.githubusercontent" not in url:  # the repository itself is linked
                    assert f"({url})" in text


def test_importing_the_room_brings_no_heavy_library():
    heavy = ("tensorflow", "keras", "h5py", "requests", "pooch", "PIL", "cv2")
    code = (
        "import sys, tf_alexnet.weights, tf_alexnet.labels; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
