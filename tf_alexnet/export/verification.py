"""Compare an export, run in its own runtime on real photos, with the library."""

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
    """Results of a verification.

    Attributes
    ----------
    runtime : str
        Library that ran the export, with its version.
    engine : str
        Our engine that it was compared with.
    photos : int
        Number of photos.
    errors : dict of str to float
        Blob -> largest deviation relative to the blob's maximum. A SavedModel has the features
        twice: from preprocessed photos, and as ``served <name>`` from image files.
    top1, top5 : float or None
        Fraction of photos with the same most probable class, and with the same five classes in the
        same order; None without a classifier.
    size : int
        Size of all files in bytes.
    milliseconds : float
        Median time per photo, without preprocessing.
    ready_seconds : float
        Time from importing the runtime to the first result.
    without_tensorflow : bool
        Whether the process ran without TensorFlow.
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
    """Run an export in a fresh process, and compare it with the library.

    Parameters
    ----------
    source : Source
        What was exported.
    folder : Path
        Folder of the export.
    target, variant : str
        One of `TARGETS` and of `VARIANTS`.
    paths, batch : list of str, ndarray of float32 (N, S, S, 3)
        Image files, and the same photos preprocessed.

    Raises
    ------
    OutputError
        If the outputs deviate too much, or the runtime fails.
    """
    engine, expected = _expected(source, target, batch)
    what = f"the {TARGETS[target].title} of {source.arrays.source}"
    report, rows = _run(source, folder, target, paths, batch, what)
    # Photo by photo, then all in one batch.
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
    """The engine to compare a target with: not the target's own runtime, if possible."""
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
    """The report of `runtime`, and the rows it computed."""
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
    """Largest deviation relative to the largest expected value; infinite if shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    worst = np.abs(found.astype(np.float64) - expected).max()
    return float(worst / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _agreement(rows: Blobs, expected: Blobs, count: int) -> float | None:
    """Fraction of photos with the same `count` most probable classes in the same order."""
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
        more = " or calibrate with more photos" if variant == "int8" else ""
        advice = f"Nothing was written. Use a finer variant ({', '.join(others)}){more}."
    for name, error in errors.items():
        allowed = TOLERANCES[variant][name == "prob"]
        if not error <= allowed:  # true for NaN
            raise OutputError(
                what,
                f"{runtime} deviates: {name} is off by {error:.2g} of its maximum, and "
                f"{allowed:.0e} is allowed{agreed}",
                advice,
            )


def _served_error(source: Source, rows: Blobs, expected: Blobs, what: str) -> float:
    """Error of ``serving_default``, run on the files and, last, on bytes that are not an image."""
    served = {k.removeprefix("served_"): v for k, v in rows.items() if k.startswith("served_")}
    status, features = served["status"], served[source.features]
    good = status == _OK
    # TensorFlow can't read all formats that Pillow can.
    faults = [x for x in status[:-1] if x not in (_OK, _OTHER_KIND)]
    if faults or status[-1] != _OTHER_KIND or features[~good].any() or not good.any():
        raise OutputError(what, f"serving_default returns {b', '.join(status)!r}", _ADVICE)
    return _error(features[good], expected[source.features][good[:-1]])


def _check_names(source: Source, rows: Blobs, expected: Blobs, what: str) -> None:
    """Refuse served class names that don't match their probabilities."""
    places = {
        (x.synset.encode(), x.label.encode(errors="surrogateescape")): i
        for i, x in enumerate(source.labels)
    }
    for row in np.flatnonzero(rows["served_status"] == _OK):
        names = zip(rows["served_synsets"][row], rows["served_classes"][row], strict=True)
        wanted = expected["prob"][row][[places[name] for name in names]]
        if not np.allclose(rows["served_probabilities"][row], wanted, atol=1e-4):
            raise OutputError(what, "serving_default names the wrong classes", _ADVICE)
