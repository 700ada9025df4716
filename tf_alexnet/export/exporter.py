"""`export_model`: write, verify and describe an export, then put it in place."""

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

PHOTOS = 16  # most photos to verify with

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """An export that was written and verified, or verified again.

    Attributes
    ----------
    folder : Path
        Folder of the export.
    target, variant : str
        One of `TARGETS` and of `VARIANTS`.
    file : Path
        File to load.
    verification : Verification
        Results of the verification.
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
    """Export a network as a model file for another runtime, and verify it there.

    The folder holds the model, its classes (``labels.txt``), a model card (``README.md``) and a
    JSON record (``export.json``). Every model takes preprocessed photos, ``data``, float32
    (N, S, S, 3), and returns the blob before the classifier (`fc7`, or the layer that a classifier
    was trained on) and `prob`; Caffe models are channels first. A SavedModel takes image files too.

    Parameters
    ----------
    model : path, str, Run, WeightArrays or keras.Model
        A RUN, a weight file, a catalogue name, ``"random:SEED"`` for an untrained control, arrays,
        or a model, whose weights are exported.
    to : {"savedmodel", "litert", "onnx", "openvino", "keras", "caffe"}
        Target format.
    output : path
        Folder to create. It appears once the model is verified; nothing is replaced.
    photos : path, or sequence of paths, optional
        Photos to verify with, as in `extract_features` (default: the examples); at most 16 of them.
    variant : {"float32", "float16", "dynamic", "int8"}
        For LiteRT: type of the weights and, with int8, of the activations.
    calibrate : path, optional
        Representative photos to calibrate int8 with; at most 512 are used.
    architecture, preset, mean_image
        As in `FeatureExtractor`, for weights that don't record them.
    labels : sequence of str, mapping or path, optional
        Class names, as in `read_labels` (default: those of the RUN, or of ImageNet).
    verify_only : bool
        Verify the export in `output`, and write nothing.

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
        If `output` can't be written, or the outputs of the export deviate from the library's by
        more than 1e-5 (features) or 1e-4 (`prob`) of the blob's maximum in float32, 5e-3 in
        float16, and 5e-2 in dynamic and int8.
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
        _log.info("verifying in %s", target_named(to, variant).runtime)
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
    """Refuse a call that can't succeed, before loading anything.

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
                "Use its own target and variant.",
            )
        return
    if (variant == "int8") != (calibrate is not None):
        raise UsageError(
            f"variant {variant!r}" + (" with photos to calibrate" if calibrate else ""),
            "int8 needs photos to calibrate with, and no other variant does",
            "Give --calibrate DIR with int8 only.",
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(str(output), "it already exists", "Name a new folder.")
    parent = next(x for x in output.absolute().parents if x.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise OutputError(
            str(output), f"nothing can be written to {parent}", "Choose another folder."
        )


def _check_record(record: dict, source: Source, folder: Path) -> None:
    """Refuse to compare an export with other weights or another preset."""
    if record["weights_digest"] != source.arrays.digest:
        raise UsageError(
            f"{folder} as an export of {source.arrays.source}",
            "it was made from other weights",
            "Name the RUN or weight file that it was made from.",
        )
    if record["preset"] != source.arrays.metadata["preset"]:
        raise UsageError(
            f"{folder} with preset {source.arrays.metadata['preset']!r}",
            f"it was made for {record['preset']!r}",
            "Use that preset.",
        )


def _write(source: Source, folder: Path, to: str, variant: str, calibrate) -> None:
    """The model file, and the classes."""
    target = target_named(to, variant)
    if source.labels:
        (folder / LABELS).write_text(source.labels_text, encoding="utf-8")
    settings = {"variant": variant, "calibrate": calibrate} if len(target.variants) > 1 else {}
    _log.info("writing the %s", target.title)
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
    """A temporary folder next to `output`, renamed to it if the block succeeds."""
    temporary = output.absolute().with_name(f".tf-alexnet-{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as opened:
                    os.fsync(opened.fileno())
        if output.is_dir():
            output.rmdir()  # fails unless it is empty
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
