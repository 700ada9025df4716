"""A folder of hostile photos: each ends as a row or as one reason code, soon, in little memory.

The reading is done by a process of its own, whose peak memory and whose children's can be told.
"""

import contextlib
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_job import read

from tf_alexnet.extraction import REASONS
from tf_alexnet.images import find_images
from tf_alexnet.images.decode import FORMATS

# pillow-heif's writer
pytestmark = pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")

WRITERS = [
    *[("JPEG", options) for options in ({}, {"progressive": True}, {"subsampling": 0})],
    *[("TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "jpeg", "tiff_deflate")],
    *[("WEBP", options) for options in ({}, {"lossless": True})],
    *[(name, {}) for name in ("PNG", "GIF", "BMP", "DIB", "PPM", "PCX", "TGA", "ICO", "MPO")],
    *[
        (name, {})
        for name in ("JPEG2000", "AVIF", "HEIF", "SGI", "DDS", "PDF", "EPS", "MSP", "XBM")
    ],
]
MODES = ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr", "HSV")
NAMES = (
    "plain{}",
    "with space {}",
    "new\nline {}",
    "quote'\" {}",
    "tab\t{}",
    "ünï-{}",
    "-rf {}",
    "*?[{}]",
    os.fsdecode(b"bytes\xff\xfe {}"),
)

CAMPAIGN = """
import json, os, resource, sys
from tf_alexnet.extraction.reader import PhotoReader

folder = sys.argv[1]
paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
rows, failures = [], []
with PhotoReader("torchvision", workers=2) as reader:
    for batch in reader.batches(paths, 1):
        assert batch.pixels.shape == (len(batch.paths), 224, 224, 3)
        rows += batch.paths
        failures += batch.failures
status = open("/proc/self/status")  # ru_maxrss knows what the process was before exec, too
with status:
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
assert sorted(rows + [failure.path for failure in failures]) == paths
print(json.dumps([len(rows), [f[1:3] for f in failures], own, largest_child]))
"""


def photo(random_, kind, options):
    """An intact picture, if there is one of that kind and mode."""
    mode = random_.choice(MODES)
    size = random_.randint(1, 90), random_.randint(1, 90)
    pixels = np.frombuffer(random_.randbytes(4 * size[0] * size[1]), np.uint8)
    picture = Image.fromarray(pixels.reshape(size[1], size[0], 4)[..., :3].copy())
    file = io.BytesIO()
    try:
        converted = picture if mode in ("RGB", "LAB") else picture.convert("L").convert(mode)
        converted.save(file, kind, **options)
    except (OSError, ValueError, KeyError):  # no such writer here, or not for this mode
        picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def damaged(random_, data):
    """Cut, flipped, overwritten, doubled or stuffed at random places."""
    data = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 5, 30))):
        place = random_.randrange(len(data)) if random_.random() < 0.6 else 0
        place += random_.randrange(min(64, len(data) - place))  # headers are where it hurts
        match random_.randrange(6):
            case 0 if len(data) > 20 and place:
                del data[place:]
            case 1:
                data[place : place + 4] = random_.choice(
                    (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff")
                )
            case 2:
                data[place:place] = random_.randbytes(random_.randrange(1, 40))
            case 3:
                del data[place : place + random_.randrange(1, 40)]
            case _:
                data[place] ^= 1 << random_.randrange(8)
        data = data or bytearray(1)
    return bytes(data)


def bomb(width, height, depth=8, colours=0):
    """A small PNG whose header promises a lot."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    body = zlib.compress(bytes(min(width * height, 10**6)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def large(kind, **options):
    """An honest 49 megapixels."""
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), (1, 2, 3)).save(file, kind, **options)
    return file.getvalue()


def fill(folder, count, seed):
    """Put `count` entries into a folder, few of them photos that anyone would wish for."""
    random_ = random.Random(seed)
    specials = [
        bomb(2**31 - 1, 2**31 - 1),
        bomb(50_000, 50_000),
        bomb(7_000, 7_000, 16, 6),
        bomb(1, 49_000_000),
        bomb(49_000_000, 1),
        large("JPEG"),
        large("TIFF", compression="tiff_lzw"),
        b"",
        b"\x00" * 4096,
        b"\xff\xd8\xff",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF89a",
        b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(200),
        b"P6 99999 400 255\n" + bytes(99),
        struct.pack("<2sIHHI", b"BM", 2**31, 0, 0, 54) + bytes(40),
    ]
    for number in range(count):
        name = NAMES[number % len(NAMES)].replace("{}", str(number))
        path = os.path.join(folder, name + random_.choice((".jpg", ".png", ".tif", "", ".txt")))
        if number < len(specials):
            data = specials[number]
        elif number % 20 == 0:
            match number // 20 % 5:
                case 0:
                    os.mkdir(path)
                case 1:
                    os.symlink(path, path)
                case 2:
                    os.symlink(os.path.join(folder, "..", "nothing"), path)
                case 3:
                    os.mkfifo(path)
                case 4:
                    os.symlink("/dev/zero", path)
            continue
        else:
            data = photo(random_, *random_.choice(WRITERS))
            if random_.random() < 0.8:
                data = damaged(random_, data)
        with open(path, "wb") as file:
            file.write(data)
        if random_.random() < 0.02:
            os.chmod(path, 0)


@pytest.mark.parametrize(
    ("count", "seed"),
    [(200, 1), *[pytest.param(1000, seed, marks=pytest.mark.slow) for seed in range(2, 12)]],
)
def test_hostile_photos(tmp_path, count, seed):
    fill(tmp_path, count, seed)
    command = [sys.executable, "-W", "error", "-c", CAMPAIGN, str(tmp_path)]
    code, out, err, most = watched(command)
    assert (code, err) == (0, "")
    rows, failures, own, largest_child = json.loads(out)
    assert rows + len(failures) == count
    assert rows > count // 10, "most of the intact ones"
    assert {code for code, _ in failures} <= set(REASONS)
    assert {"missing", "is_folder", "empty", "not_an_image", "damaged", "too_large"} <= {
        code for code, _ in failures
    }
    assert not {"worker_died", "timed_out"} & {code for code, _ in failures}, "as far as we know"
    assert all(text.strip() for _, text in failures)
    # Kilobytes. A picture one pixel wide takes 600,000; 780,000 if a large one came before it.
    assert own < 200_000
    assert largest_child < 1_000_000
    assert most < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("output", ["f.h5", "f.npz", "f.npy", "f.parquet", "f/", "f.parquet/"])
def test_hostile_photos_through_the_command(output, tmp_path, monkeypatch):
    """More than 1,000 that a folder gives, with the real network, names and memory and all."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    fill("photos", 1750, 20)
    given = find_images(["photos"])
    assert len(given) > 1000
    assert any("\n" in path for path in given)
    assert any("\udcff" in path for path in given)
    words = ["extract", "photos", "-o", output, "-w", "torchvision-convs", "-l", "pool5"]
    words += ["--pool", "avg", "--shard-size", "300", "--max-errors", "100%"]
    code, out, err, most = watched([sys.executable, "-m", "tf_alexnet", *words])
    assert code == 0, err
    rows, failed = read(output, "pool5")
    assert {*rows, *failed} == set(given)
    assert len(rows) + len(failed) == len(given)
    assert set(failed.values()) <= set(REASONS)
    assert not {"worker_died", "timed_out"} & set(failed.values())
    assert f": {len(rows)} rows + {len(failed)} errors = {len(given)} photos; pool5" in out
    assert err.count("\nerror: ") == 20, "that many are named"
    assert re.search(r"\nnote: \d+ more could not be read", err)
    assert all(np.isfinite(row).all() for row in rows.values())
    assert most < 1_500_000, "kilobytes"


def watched(command):
    """Exit code, output, messages, and the most kilobytes that a program and its processes had."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with subprocess.Popen(command, stdout=out, stderr=err) as process:
            most = 0
            while process.poll() is None:
                most = max(most, memory_of_tree(process.pid))
                time.sleep(0.1)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "surrogateescape"))
    return process.returncode, *texts, most


def memory_of_tree(top):
    """Kilobytes of a process and its descendants; what they share is counted once."""
    parents, sizes = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, StopIteration, ValueError):
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    mine = {str(top)}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    for pid in mine:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            sizes[pid] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return sum(sizes.values())


def test_the_campaign_covers_what_is_read():
    assert {kind for kind, _ in WRITERS} >= set(FORMATS)
