"""Does an export compute what the library computes? Asked of its own runtime, on real photos."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_alexnet.engines import load_network
from tf_alexnet.errors import OutputError
from tf_alexnet.export.caffe_model import opencv_layers
from tf_alexnet.export.children import run_program
from tf_alexnet.export.source import Source
from tf_alexnet.export.targets import TARGETS, TOLERANCES, VARIANTS

TOP = 5
_OK, _OTHER_KIND = b"ok", b"not_an_image"
_ADVICE = "Nothing was written. Please report it, with the versions of the packages in use."

Blobs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes
    ----------
    runtime : str
        The library that ran the export, and its version.
    engine : str
        The library's engine that it was compared with.
    photos : int
        How many.
    errors : dict of str to float
        Blob -> largest deviation as a part of the blob's maximum. A SavedModel has the features
        twice: once from preprocessed photos, and as ``served <name>`` from the files themselves.
    top1, top5 : float or None
        Fraction of the photos with the same first class, and with the same first five classes in
        the same order; None for a network without a classifier.
    size : int
        Bytes of all files.
    milliseconds : float
        Median time of one photo, preprocessing not included.
    ready_seconds : float
        From the runtime's import to the first result.
    without_tensorflow : bool
        Whether the process had not loaded TensorFlow.
    """

    runtime: str
    engine: str
    photos: int
    errors: Mapping[str, float]
    top1: float | None
    top5: float | None
    size: int
    milliseconds: float
    ready_seconds: float
    without_tensorflow: bool


def verify_export(
    source: Source,
    folder: Path,
    target: str,
    variant: str,
    paths: Sequence[str],
    batch: np.ndarray,
) -> Verification:
    """Run an export in a fresh process, and compare.

    Parameters
    ----------
    source : Source
        What was exported.
    folder : Path
        Where it is.
    target, variant : str
        What it is, of `TARGETS` and `VARIANTS`.
    paths, batch : list of str, ndarray of float32 (N, S, S, 3)
        Photos: their files, and preprocessed.

    Raises
    ------
    OutputError
        If it computes something else, or its runtime refuses it.
    """
    engine, expected = _expected(source, target, batch)
    what = f"the {TARGETS[target].title} of {source.arrays.source}"
    report, rows = _run(source, folder, target, paths, batch, what)
    # Once photo by photo, and once all together.
    errors = {name: _error(rows[name], np.concatenate([x, x])) for name, x in expected.items()}
    if target == "savedmodel":
        errors[f"served {source.features}"] = _served_error(source, rows, expected, what)
    top1, top5 = (_agreement(rows, expected, count) for count in (1, TOP))
    agreed = "" if top1 is None else f" (same top 1: {round(top1 * len(batch))} of {len(batch)})"
    _check_errors(errors, variant, what, report["runtime"], agreed)
    if target == "savedmodel" and source.labels:
        _check_names(source, rows, expected, what)
    return Verification(
        runtime=report["runtime"],
        engine=engine,
        photos=len(batch),
        errors=errors,
        top1=top1,
        top5=top5,
        size=sum(x.stat().st_size for x in folder.rglob("*") if x.is_file()),
        milliseconds=report["milliseconds"],
        ready_seconds=report["ready_seconds"],
        without_tensorflow=not report["tensorflow"],
    )


def reference_engine(target: str) -> str:
    """The engine to compare a target with: one that is not the target's own runtime."""
    installed = importlib.util.find_spec("openvino") is not None
    return "openvino" if installed and target != "openvino" else "tensorflow"


def _expected(source: Source, target: str, batch: np.ndarray) -> tuple[str, Blobs]:
    """The blobs as the library computes them."""
    engine = reference_engine(target)
    network = load_network(engine, source.table, source.arrays.layers, source.blobs)
    return engine, network(batch)


def _run(
    source: Source,
    folder: Path,
    target: str,
    paths: Sequence[str],
    batch: np.ndarray,
    what: str,
) -> tuple[dict, Blobs]:
    """What `runtime` reports, and the rows it computed."""
    with tempfile.TemporaryDirectory(prefix="tf-alexnet-") as scratch:
        place = Path(scratch)
        job = {"target": target, "folder": str(folder.resolve()), "blobs": source.blobs}
        job |= {"file": TARGETS[target].file, "layers": opencv_layers(source)}
        job |= {"photos": [str(Path(x).resolve()) for x in paths]}
        job |= {x: str(place / y) for x, y in _FILES.items()}
        np.save(job["batch"], batch)
        (place / "job.json").write_text(json.dumps(job))
        run_program(Path(__file__).with_name("runtime.py"), place / "job.json", what)
        with np.load(job["rows"], allow_pickle=False) as rows:
            return json.loads(Path(job["report"]).read_text()), dict(rows)


_FILES = {"batch": "batch.npy", "rows": "rows.npz", "report": "report.json"}


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation, as a part of the largest expected value; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    worst = np.abs(found.astype(np.float64) - expected).max()
    return float(worst / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _agreement(rows: Blobs, expected: Blobs, count: int) -> float | None:
    """Fraction of the photos with the same first classes in the same order."""
    if "prob" not in expected:
        return None
    theirs, ours = (
        np.argsort(-x["prob"][: len(expected["prob"])], axis=1, kind="stable")[:, :count]
        for x in (rows, expected)
    )
    return float((theirs == ours).all(axis=1).mean())


def _check_errors(
    errors: Mapping[str, float], variant: str, what: str, runtime: str, agreed: str
) -> None:
    advice = _ADVICE
    if variant != "float32":
        others = VARIANTS[: VARIANTS.index(variant)]
        advice = f"Nothing was written. For these weights use a finer variant: {', '.join(others)}."
    for name, error in errors.items():
        allowed = TOLERANCES[variant][name == "prob"]
        if not error <= allowed:  # NaN neither
            raise OutputError(
                what,
                f"{runtime} computes something else: {name} is {error:.2g} of its maximum off, and "
                f"{allowed:.0e} is allowed{agreed}",
                advice,
            )


def _served_error(source: Source, rows: Blobs, expected: Blobs, what: str) -> float:
    """The same for ``serving_default``, which got the files and, last, what is no image."""
    served = {k.removeprefix("served_"): v for k, v in rows.items() if k.startswith("served_")}
    status, features = served["status"], served[source.features]
    good = status == _OK
    # A graph of TensorFlow's operations can't read all that Pillow can.
    faults = [x for x in status[:-1] if x not in (_OK, _OTHER_KIND)]
    if faults or status[-1] != _OTHER_KIND or features[~good].any() or not good.any():
        raise OutputError(what, f"serving_default answers with {b', '.join(status)!r}", _ADVICE)
    return _error(features[good], expected[source.features][good[:-1]])


def _check_names(source: Source, rows: Blobs, expected: Blobs, what: str) -> None:
    """Refuse served names that are not those of the classes with these probabilities."""
    places = {
        (x.synset.encode(), x.label.encode(errors="surrogateescape")): i
        for i, x in enumerate(source.labels)
    }
    for row in np.flatnonzero(rows["served_status"] == _OK):
        names = zip(rows["served_synsets"][row], rows["served_classes"][row], strict=True)
        wanted = expected["prob"][row][[places[name] for name in names]]
        if not np.allclose(rows["served_probabilities"][row], wanted, atol=1e-4):
            raise OutputError(what, "serving_default names the wrong classes", _ADVICE)
