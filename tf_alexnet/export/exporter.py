"""`export_model`: write, verify, describe, and only then give the folder its name."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tf_alexnet.errors import OutputError, UsageError, one_line
from tf_alexnet.export.card import CARD, RECORD, card_text, read_record, record_text
from tf_alexnet.export.photos import read_photos
from tf_alexnet.export.source import LABELS, Source, open_source
from tf_alexnet.export.targets import target_named
from tf_alexnet.export.verification import Verification, verify_export
from tf_alexnet.files import sync_folder

if TYPE_CHECKING:
    import keras

    from tf_alexnet.images import Preset
    from tf_alexnet.images.mean_image import Mean
    from tf_alexnet.labels import Labels
    from tf_alexnet.training.run import Run
    from tf_alexnet.weights import WeightArrays

PHOTOS = 16  # to verify by, at most

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """A model file that was written and verified, or verified again.

    Attributes
    ----------
    folder : Path
        Where it is.
    target, variant : str
        What it is.
    file : Path
        What to load.
    verification : Verification
        What was measured.
    """

    folder: Path
    target: str
    variant: str
    file: Path
    verification: Verification

    def __repr__(self) -> str:
        measured = self.verification
        return (
            f"<Export {one_line(self.file)}: {self.target} {self.variant}, largest error "
            f"{max(measured.errors.values()):.1e} on {measured.photos} photos>"
        )


def export_model(
    model: str | os.PathLike | Run | WeightArrays | keras.Model,
    to: str,
    output: str | os.PathLike,
    *,
    photos: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    variant: str = "float32",
    calibrate: str | os.PathLike | None = None,
    architecture: str | None = None,
    preset: str | Preset | None = None,
    mean_image: Mean = None,
    labels: Labels | None = None,
    verify_only: bool = False,
) -> Export:
    """Write a network as a model file of another program, and verify it there.

    The folder holds the model, its classes (``labels.txt``), a model card (``README.md``) and the
    same for programs (``export.json``). Every model takes preprocessed photos, ``data``, float32
    (N, S, S, 3), and returns the blob before the classifier (`fc7`, or for a classifier on another
    layer that one) and `prob`; Caffe models are channels first. A SavedModel takes image files too.

    Parameters
    ----------
    model : path, str, Run, WeightArrays or keras.Model
        The RUN of a training, a weight file, a catalogue name, ``"random:SEED"`` for an untrained
        control, arrays, or a model to take the weights of.
    to : {"savedmodel", "litert", "onnx", "openvino", "keras", "caffe"}
        The kind of model file.
    output : path
        The folder to make. It gets its name after the model was verified; nothing is replaced.
    photos : path, or sequence of paths, optional
        Photos to verify by, as in `extract_features` (default: the examples); of many, 16 are used.
    variant : {"float32", "float16", "dynamic", "int8"}
        For LiteRT: type of the weights and, with int8, of the values.
    calibrate : path, optional
        Photos that tell the ranges of values for int8; of many, 512 are used.
    architecture, preset, mean_image
        As in `FeatureExtractor`, for weights that don't tell.
    labels : sequence of str, mapping or path, optional
        Names of the classes, as in `read_labels` (default: those of the RUN, or of ImageNet).
    verify_only : bool
        Write nothing; verify the export that is in `output`.

    Returns
    -------
    Export

    Raises
    ------
    UsageError
        If the arguments contradict each other, or the runtime is not installed.
    WeightsError
        If the model can't be read.
    OutputError
        If `output` can't be written, or what was written computes something else than the library:
        features may be off by 1e-5 of their maximum and probabilities by 1e-4 (float32), 5e-3
        (float16), 5e-2 (dynamic, int8).
    """
    output = Path(output)
    check_call(to, output, variant, calibrate, verify_only)
    source = open_source(
        model, architecture=architecture, preset=preset, mean_image=mean_image, labels=labels
    )
    if verify_only:
        _check_record(read_record(output), source, output)
        return _verified(source, output, to, variant, photos)
    with _new_folder(output) as folder:
        _write(source, folder, to, variant, calibrate)
        _log.info("verifying it: %s", target_named(to, variant).runtime)
        found = _verified(source, folder, to, variant, photos)
        about = source, to, variant, found.verification
        (folder / CARD).write_text(card_text(*about), encoding="utf-8")
        (folder / RECORD).write_text(record_text(*about), encoding="utf-8")
    return Export(output, to, variant, output / target_named(to).file, found.verification)


def check_call(
    to: str,
    output: str | os.PathLike,
    variant: str = "float32",
    calibrate: str | os.PathLike | None = None,
    verify_only: bool = False,
) -> None:
    """Refuse a call that can't succeed, before anything is loaded.

    Raises
    ------
    UsageError, OutputError
        As `export_model`.
    """
    target_named(to, variant)
    output = Path(output)
    if verify_only:
        record = read_record(output)
        if (record["target"], record["variant"]) != (to, variant):
            raise UsageError(
                f"{output} as {to}, {variant}",
                f"it is {record['target']}, {record['variant']}",
                "Name what it is.",
            )
        return
    if (variant == "int8") != (calibrate is not None):
        raise UsageError(
            f"variant {variant!r}" + (" with photos to calibrate" if calibrate else ""),
            "int8 needs photos that tell the ranges of values, and other variants have no use for "
            "them",
            "Give --calibrate DIR with int8 only.",
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(str(output), "it is there already", "Name a new folder.")
    parent = next(x for x in output.absolute().parents if x.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise OutputError(
            str(output), f"nothing can be written to {parent}", "Choose another place."
        )


def _check_record(record: dict, source: Source, folder: Path) -> None:
    """Refuse to compare an export with other weights than it was made of."""
    if record["weights_digest"] != source.arrays.digest:
        raise UsageError(
            f"{folder} as an export of {source.arrays.source}",
            "it was made of other weights",
            "Name the RUN or weight file that it was made of.",
        )
    if record["preset"] != source.arrays.metadata["preset"]:
        raise UsageError(
            f"{folder} with preset {source.arrays.metadata['preset']!r}",
            f"it was made for {record['preset']!r}",
            "Name that preset.",
        )


def _write(source: Source, folder: Path, to: str, variant: str, calibrate) -> None:
    """The model file, and the classes."""
    target = target_named(to, variant)
    if source.labels:
        (folder / LABELS).write_text(source.labels_text, encoding="utf-8")
    settings = {"variant": variant, "calibrate": calibrate} if len(target.variants) > 1 else {}
    _log.info("writing it: %s", target.title)
    target.load().write(source, folder / target.file, **settings)


def _verified(source: Source, folder: Path, to: str, variant: str, photos) -> Export:
    if photos is None:
        from tf_alexnet.demo import example_photos

        photos = example_photos()
    paths, batch = read_photos(source, photos, PHOTOS)
    checked = verify_export(source, folder, to, variant, paths, batch)
    return Export(folder, to, variant, folder / target_named(to).file, checked)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, which is renamed to it once the block ends well."""
    temporary = output.absolute().with_name(f".tf-alexnet-{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        if output.is_dir():
            output.rmdir()  # it is empty, or this fails
        temporary.rename(output)
        sync_folder(output.absolute().parent)
    except OSError as error:
        raise OutputError(
            str(output),
            f"it can't be written ({error.strerror or error})",
            "Check that the disk has space left.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
