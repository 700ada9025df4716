"""No room knows what it must not know: the imports of every module, read without running it."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import tf_alexnet

PACKAGE = Path(tf_alexnet.__file__).parent
TENSORFLOW = ("tensorflow", "keras")
OBJECT_LOADERS = (
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "torch",
    "onnx",
    "shelve",
)

# Room (module or folder, or a module in a folder) -> what no module in it imports, directly.
FORBIDDEN = {
    "errors": ("tf_alexnet", *TENSORFLOW, "numpy"),
    "version": ("tf_alexnet", *TENSORFLOW),
    "files": TENSORFLOW,
    "architectures": (*TENSORFLOW, "numpy", "pathlib", "os", "tf_alexnet.weights"),
    "labels": (*TENSORFLOW, "tf_alexnet.model", "requests", "urllib", "pooch"),
    "weights": (
        *TENSORFLOW,
        *("PIL", "cv2", "tf_alexnet.images", "tf_alexnet.model", "tf_alexnet.cli"),
    ),
    "layers": ("tf_alexnet.model", "tf_alexnet.weights", "pathlib"),
    "blobs": ("PIL", "cv2", "h5py", "os", "tf_alexnet.images", "tf_alexnet.extraction"),
    "loading": ("PIL", "cv2", "tf_alexnet.images", "tf_alexnet.extraction"),
    "lazy": (*TENSORFLOW, "numpy"),
    "model": ("PIL", "cv2", "h5py", "tf_alexnet.images", "tf_alexnet.extraction"),
    "images": ("h5py", "tf_alexnet.model", "tf_alexnet.weights", "tf_alexnet.extraction"),
    "extraction": ("typer", "rich", "tf_alexnet.cli"),
    "training": ("typer", "rich", "tf_alexnet.cli"),
    "evaluation": ("typer", "rich", "tf_alexnet.cli", "PIL", "cv2", "h5py"),
    "evaluation.metrics": (*TENSORFLOW, "tf_alexnet.model"),
    "evaluation.ground_truth": (*TENSORFLOW, "tf_alexnet.model"),
    "serve": ("typer", "rich", "tf_alexnet.cli", *TENSORFLOW, "tf_alexnet.model"),
    "sklearn_features": ("typer", "rich", "tf_alexnet.cli", "PIL", "cv2", "h5py"),
    "visualize": ("typer", "rich", "tf_alexnet.cli", "tf_alexnet.model", "tf_alexnet.training"),
    "visualize.architecture": (*TENSORFLOW, "numpy", "PIL"),
    "visualize.similarity": (*TENSORFLOW, "PIL", "matplotlib", "tf_alexnet.extraction"),
    "export": ("typer", "rich", "tf_alexnet.cli"),
    "demo": ("typer", "rich", "tf_alexnet.cli"),
    "cli": ("numpy", "cv2", "PIL", "h5py", "keras"),
}

IMAGES_WITH_TENSORFLOW = {"tf_ops.py", "preprocessing.py"}


@functools.cache
def modules():
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


@functools.cache
def imported(path, top_level_only=False):
    """Dotted names that a module imports."""
    return [*_imported(tree_of(path), top_level_only)]


def _imported(tree, top_level_only):
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, parent):
    return name == parent or name.startswith(parent + ".")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_keep_to_themselves(room):
    here = [
        path
        for path in modules()
        if within(".".join(path.relative_to(PACKAGE).with_suffix("").parts), room)
    ]
    assert here
    exempt = IMAGES_WITH_TENSORFLOW if room == "images" else set()
    # Where a caller passes a model or pictures, models and images are imported then.
    lazy = {"io.py", "verify.py"} if room == "weights" else set()
    for path in here:
        if path.name in exempt:
            continue
        for name in imported(path, path.name in lazy):
            for banned in FORBIDDEN[room]:
                inside = within(name, "tf_alexnet." + room)
                assert inside or not within(name, banned), f"{path} imports {name}"


def test_few_modules_of_the_images_know_tensorflow():
    knowing = {
        path.name
        for path in (PACKAGE / "images").glob("*.py")
        if any(within(name, banned) for name in imported(path) for banned in TENSORFLOW)
    }
    assert knowing == IMAGES_WITH_TENSORFLOW


def test_nothing_in_the_package_can_load_objects():
    for path in modules():
        for name in imported(path):
            assert not any(within(name, banned) for banned in OBJECT_LOADERS), f"{path}: {name}"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and node.attr in ("load_model", "model_from_json"):
                # There the configuration is checked first.
                assert path.name == "loading.py", f"{path}:{node.lineno} loads Keras objects"


def test_the_library_never_prints():
    for path in modules():
        if path.relative_to(PACKAGE).parts[0] in ("cli", "__main__.py"):
            continue
        for node in ast.walk(tree_of(path)):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (called and node.func.id == "print"), f"{path}:{node.lineno}"


def test_tensorflow_is_not_imported_before_it_is_needed():
    """One process imports everything that needs no TensorFlow, one after the other."""
    statements = [
        "import tf_alexnet",
        "import tf_alexnet.weights, tf_alexnet.labels, tf_alexnet.images",
        "import tf_alexnet.testing",
        "import tf_alexnet.training.folders, tf_alexnet.training.run, tf_alexnet.training.linear",
        "import tf_alexnet.visualize.sanity, tf_alexnet.visualize.rsm, tf_alexnet.visualize.maps",
        "import tf_alexnet.cli.main",
        "import tf_alexnet.export.exporter, tf_alexnet.export.targets",
    ]
    code = f"""
import sys
for statement in {statements}:
    exec(statement)
    if "tensorflow" in sys.modules or "keras" in sys.modules:
        sys.exit(statement)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


def test_every_public_name_exists_and_has_a_docstring():
    for name in tf_alexnet.__all__:
        assert getattr(tf_alexnet, name).__doc__, name
    assert set(tf_alexnet.__all__) <= set(dir(tf_alexnet))
    with pytest.raises(AttributeError, match="no attribute 'alexnet'"):
        tf_alexnet.alexnet  # noqa: B018
