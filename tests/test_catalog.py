"""The catalogue against itself, the tables, and the checksum file beside the weights."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tf_alexnet.architectures import ARCHITECTURES
from tf_alexnet.errors import WeightsError
from tf_alexnet.weights.catalog import (
    KnownWeights,
    catalog,
    check_file,
    file_checksum,
    known_weights,
    names,
)

REPOSITORY = Path(__file__).parents[1]


def test_sha256sums_is_the_catalogue():
    lines = (REPOSITORY / "weights" / "SHA256SUMS").read_text().splitlines()
    assert lines == sorted(f"{r.sha256}  {r.file_name}" for r in catalog() if r.sha256)


def test_embedded_file_is_the_catalogues():
    record = known_weights("torchvision-convs")
    path = REPOSITORY / "tf_alexnet" / "data" / record.file_name
    check_file(path, record)
    assert path.with_name("NOTICE.torchvision.md").read_text().count("Soumith Chintala 2016") == 1


@pytest.mark.parametrize("record", catalog(), ids=lambda record: record.name)
def test_records_are_sound(record):
    table = ARCHITECTURES[record.architecture]
    assert record.preset == table.preset
    assert record.spellings[0] == record.file_name
    assert record.licence
    for mirror in record.mirrors:
        assert mirror.startswith(("https://", "http://"))
        assert mirror.endswith("/" + record.file_name)
    lengths = {"sha256": 64, "sha1": 40, "git_blob": 40}
    for algorithm, length in lengths.items():
        digest = getattr(record, algorithm)
        assert digest is None or (len(digest) == length and int(digest, 16))
    # Only a file that is verified may come over plain HTTP, or one that says it can't be.
    assert record.checksum or "no checksum is published" in record.note
    assert all(a.top1 < a.top5 < 100 for a in record.published)


def test_no_two_records_share_a_name_and_the_published_numbers_stand():
    assert len({record.name for record in catalog()}) == len(catalog())
    published = [(a.top1, a.top5) for a in known_weights("imagenet").published]
    assert published == [(57.1, 80.2), (56.598, 79.812)]
    assert known_weights("imagenet") is known_weights("bvlc_alexnet")
    # 60,965,224 parameters of four bytes and a little framing.
    assert known_weights("bvlc_alexnet").size - 4 * ARCHITECTURES["bvlc_alexnet"].parameters == 1518


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
def test_check_file_refuses_another_size_and_one_flipped_bit(tmp_path, algorithm):
    path = tmp_path / "weights.bin"
    content = bytearray(b"0123456789" * 1000)
    path.write_bytes(content)
    digest = file_checksum(path, algorithm)
    if algorithm == "sha256":
        assert digest == hashlib.sha256(content).hexdigest()
    record = KnownWeights(
        "x",
        "weights.bin",
        "bvlc_alexnet",
        "caffe",
        1000,
        "none",
        size=10_000,
        **{algorithm: digest},
    )
    check_file(path, record)
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"its {algorithm} is .*fetch x` again"):
        check_file(path, record)
    path.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=r"9999 bytes, but weights\.bin has 10000"):
        check_file(path, record)


def test_readme_beside_the_weights_lists_every_file_and_mirror():
    text = (REPOSITORY / "weights" / "README.md").read_text()
    for record in catalog():
        assert f"`{record.name}`" in text
        assert record.licence in text
        assert not record.size or not record.mirrors or f"{record.size:,} bytes" in text
        for mirror in record.mirrors:
            if "raw.githubusercontent" not in mirror:  # the repository itself is linked
                assert f"({mirror})" in text


def test_importing_the_room_brings_no_heavy_library():
    heavy = ("tensorflow", "keras", "h5py", "requests", "pooch", "PIL", "cv2")
    code = (
        "import sys, tf_alexnet.weights, tf_alexnet.labels; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
