"""What the tests share: full-size synthetic weights, models, photos."""

import contextlib
import ctypes
import functools
import gc
import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow's own allocator keeps the most memory that it ever had.
os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
# Two tests run at a time; threads of NumPy's that wait for work would take processor time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import typer.main

from tf_alexnet.testing import synthetic_weights

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLE_PHOTOS = ROOT / "examples" / "photos"


@functools.lru_cache(maxsize=1)
def weights_of(architecture):
    """Full-size synthetic weights; kept for the next test that wants the same network."""
    return synthetic_weights(architecture)


@functools.lru_cache(maxsize=1)
def model_of(architecture):
    """The network of `weights_of`."""
    import tf_alexnet as ta

    return ta.AlexNet(weights_of(architecture))


def trained_arrays():
    """Synthetic weights with conv1 biases of the trained network: what identification goes by."""
    from tf_alexnet.weights import LayerArrays, WeightArrays
    from tf_alexnet.weights.identify import fingerprints

    arrays = weights_of("bvlc_alexnet")
    bias = fingerprints()["bvlc_alexnet"]["conv1"].astype("float32")
    layers = {**arrays.layers, "conv1": LayerArrays(arrays.layers["conv1"].kernel, bias)}
    return WeightArrays(layers)


def free(keep=True):
    """Give back the memory of networks that no test uses any more."""
    if not keep:
        weights_of.cache_clear()
        model_of.cache_clear()
        if "keras" in sys.modules:
            sys.modules["keras"].backend.clear_session()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


# No test cuts the power, and the disk takes its time; tests of what is synced replace this.
os.fsync = lambda descriptor: None

# The commands and their options are put together once, not for each call.
typer.main.get_command = functools.cache(typer.main.get_command)

# Or the children of a test run in the background would ignore interrupts, as it does itself.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The longest file, so that no process waits for it at the end, and those that start large
# processes, before the tests' own have grown. The others follow in the order of the alphabet.
FIRST = ["test_train_network.py", "test_serve.py", "test_browser.py"]


def pytest_collection_modifyitems(items):
    """Files in the order that takes the least time and memory."""
    items.sort(key=lambda item: [*FIRST, item.path.name].index(item.path.name))


def pytest_collection_finish():
    """Modules stay to the end: without them a collection takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def resident():
    """Bytes of memory in use; 0 where that is unknown."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture(scope="module", autouse=True)
def _memory_of_module():
    """[memory in use when last collected]; other modules get back what this one used."""
    kept = [max(1_000_000_000, resident())]
    yield kept
    free(keep=False)


@pytest.fixture(autouse=True)
def _little_memory(_memory_of_module):
    """Collect what a test left in reference cycles, where it is much: networks take 244 MB each."""
    yield
    if resident() > _memory_of_module[0] + 200_000_000:
        free()
        _memory_of_module[0] = max(1_000_000_000, resident())


@pytest.fixture
def empty_folder(monkeypatch, tmp_path):
    """An empty working folder and cache, and no network, whatever this machine has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_ALEXNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TF_ALEXNET_OFFLINE", "1")
    monkeypatch.delenv("TF_ALEXNET_WEIGHTS", raising=False)


@pytest.fixture
def simple():
    """See `jobs.simplify`; fixtures of modules come before it."""
    import jobs

    with pytest.MonkeyPatch.context() as patch:
        jobs.simplify(patch)
        yield


@pytest.fixture
def run(monkeypatch, capfd):
    """Run `tf-alexnet` in this process; returns (exit code, stdout, stderr)."""
    from tf_alexnet.cli.main import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tf-alexnet", *map(str, arguments)])
        capfd.readouterr()  # TensorFlow's messages, if the test has just imported it
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return exit_.value.code or 0, out, err

    return run


@pytest.fixture(scope="session")
def example_photos():
    """Paths of the photos that the repository ships."""
    photos = sorted(EXAMPLE_PHOTOS.glob("*.jpg"))
    assert len(photos) >= 3
    return photos


@pytest.fixture(scope="session")
def shared_photos():
    """Paths of more photos, where a folder of them lies beside the repository."""
    folder = ROOT.parent / "shared" / "data" / "photos"
    if not folder.is_dir():
        pytest.skip("no folder of more photos beside the repository")
    return sorted(path for path in folder.iterdir() if path.suffix != ".txt")


@pytest.fixture(scope="session")
def alexnet_file(tmp_path_factory):
    """A full-size .npy in the form of the 2016 files, with synthetic weights."""
    import tf_alexnet as ta

    path = tmp_path_factory.mktemp("weights") / "bvlc_alexnet.npy"
    ta.write_weights(weights_of("bvlc_alexnet"), path)
    return path
