"""The model card and the JSON record of an export."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tf_alexnet.errors import UsageError
from tf_alexnet.export.caffe_model import MEAN, mean_image, opencv_layers
from tf_alexnet.export.source import LABELS, Source
from tf_alexnet.export.targets import TARGETS, TOLERANCES, VARIANTS
from tf_alexnet.export.verification import TOP, Verification
from tf_alexnet.images import Preset
from tf_alexnet.version import VERSION

CARD, RECORD = "README.md", "export.json"
FORMAT = 1  # of export.json
_MAX_BYTES = 1 << 20


def record_text(source: Source, target: str, variant: str, checked: Verification) -> str:
    """Content of ``export.json``."""
    content = {
        "format": FORMAT,
        "target": target,
        "variant": variant,
        "file": TARGETS[target].file,
        "architecture": source.table.name,
        "input": ["N", *[source.table.input_size] * 2, 3],
        "outputs": {name: ["N", *source.shape(name)] for name in source.blobs},
        "preset": source.arrays.metadata["preset"],
        "weights_digest": source.arrays.digest,
        "untrained": source.arrays.untrained,
        "classes": len(source.labels),
        "verification": asdict(checked),
        "tf_alexnet": VERSION,
    }
    return json.dumps(content, indent=1) + "\n"


def read_record(folder: Path) -> dict:
    """Read ``export.json`` and check what verifying the export again needs.

    Raises
    ------
    UsageError
        If the file is missing or invalid.
    """
    path, advice = folder / RECORD, "Name an unchanged folder that `tf-alexnet export` wrote."
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(str(path), f"it can't be read ({error.strerror})", advice) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(str(path), f"not a record of an export ({error})", advice) from None
    known = (
        isinstance(content, dict)
        and content.get("format") == FORMAT
        and content.get("target") in TARGETS
        and content.get("variant") in VARIANTS
        and isinstance(content.get("weights_digest"), str)
        and isinstance(content.get("preset"), str)
    )
    if not known:
        raise UsageError(str(path), "not a record of an export, or of another version", advice)
    return content


def card_text(source: Source, target: str, variant: str, checked: Verification) -> str:
    """The model card, as Markdown."""
    kind = TARGETS[target].title + (f", {variant}" if variant != "float32" else "")
    side, labels = source.table.input_size, source.labels
    rows = [
        ("network", f"{source.table.name}: {source.table.title}"),
        ("weights", source.origin),
        ("digest of the arrays", f"`{source.arrays.digest}`"),
        ("licence of the weights", source.licence),
        ("input", f"`data`: float32 (N, {side}, {side}, 3), channels last, preprocessed"),
        ("output", ", ".join(f"`{x}`: float32 {_shape(source.shape(x))}" for x in source.blobs)),
        ("classes", f"{len(labels):,}, in [{LABELS}]({LABELS})" if labels else "none"),
        ("preprocessing", _preset(source.preset, source.arrays.metadata["preset"])),
        ("written by", f"tf_alexnet {VERSION}"),
    ]
    if target == "caffe":
        shapes = {x: source.shape(x) for x in source.blobs}
        first = {x: (*shape[2:], *shape[:2]) for x, shape in shapes.items()}
        outputs = ", ".join(f"`{x}`: float32 {_shape(shape)}" for x, shape in first.items())
        rows[4] = ("input", f"`data`: float32 (N, 3, {side}, {side}), preprocessed")
        rows[5] = ("output", f"{outputs}, channels first")
    warning = "**Untrained**: random weights, as a control. The outputs mean nothing.\n\n"
    return (
        f"# {source.table.name}: {kind}\n\n"
        f"{warning if source.arrays.untrained else ''}"
        f"{_table([('', ''), *rows])}\n"
        f"## Use\n\n{_usage(source, target)}\n"
        f"## Verification\n\n{_verification(checked, variant)}"
    )


def verification_rows(checked: Verification, variant: str) -> list[tuple[str, str]]:
    """Results of a verification, as rows of a table."""
    tolerances = TOLERANCES[variant]
    rows = [
        ("runtime", checked.runtime),
        ("compared with", f"tf_alexnet {VERSION}, engine {checked.engine}"),
    ]
    if checked.without_tensorflow:
        rows[0] = ("runtime", f"{checked.runtime}, in a process without TensorFlow")
    rows.append(("photos", str(checked.photos)))
    for name, error in checked.errors.items():
        allowed = tolerances[name == "prob"]
        rows.append((f"{name}: largest deviation", f"{error:.1e} (allowed {allowed:.0e})"))
    for count, part in ((1, checked.top1), (TOP, checked.top5)):
        if part is not None:
            agreed = f"{round(part * checked.photos)} of {checked.photos} photos"
            rows.append((f"same top {count}", agreed))
    rows.append(("size", f"{checked.size / 1e6:,.1f} MB"))
    rows.append(("one photo", f"{checked.milliseconds:.1f} ms"))
    rows.append(("ready", f"{checked.ready_seconds:.1f} s after the start"))
    return rows


def _verification(checked: Verification, variant: str) -> str:
    return (
        f"{_table([('', ''), *verification_rows(checked, variant)])}\n"
        "Deviations are relative to the blob's maximum. Photos were run one by one and as one "
        "batch.\nTimes are those of the network alone, on the machine that exported it.\n"
    )


def _usage(source: Source, target: str) -> str:
    side, blobs = source.table.input_size, list(source.blobs)
    layers = opencv_layers(source)
    count = min(TOP, len(source.labels))
    more = f"`classes`, `synsets` and `probabilities` (N, {count}), most probable first, "
    text = (
        TARGETS[target]
        .load()
        .USAGE.format(
            blobs=json.dumps(blobs),
            names=", ".join(blobs) + ("," if len(blobs) == 1 else ""),
            features=source.features,
            layers=json.dumps([layers[x] for x in blobs]),
            mean=f"`{MEAN}` is what the preset subtracts."
            if mean_image(source) is not None
            else "",
            served=more if source.labels else "",
            returned=", ".join(f"`{x}` {_shape(source.shape(x))}" for x in blobs),
            shape=_shape(source.shape(source.features)),
            side=side,
        )
    )
    if target == "savedmodel":
        return text
    return (
        "`x` is the output of `tf_alexnet.preprocess_input(photos, preset="
        f'"{source.arrays.metadata["preset"]}")`.\n\n{text}'
    )


def _shape(sides: tuple[int, ...]) -> str:
    return f"(N, {', '.join(map(str, sides))})"


def _preset(preset: Preset, name: str) -> str:
    """The steps of a preset in words and numbers."""
    how = "antialiased (Pillow's bilinear)" if preset.antialias else "OpenCV's INTER_LINEAR"
    steps = [f"RGB, resized to {preset.resized}x{preset.resized}, {how}"]
    if preset.keep_aspect:
        steps = [f"RGB, shorter side resized to {preset.resized}, {how}"]
    if preset.crops:
        steps.append(f"centre {preset.size}x{preset.size}")
    steps.append(f"channels {preset.channels}")
    if preset.divisor != 1:
        steps.append(f"divided by {preset.divisor:g}")
    mean = preset.mean if isinstance(preset.mean, str) else f"({_numbers(preset.mean)})"
    steps.append(f"minus {mean}")
    if preset.std:
        steps.append(f"divided by ({_numbers(preset.std)})")
    return f"`{name}`: {', '.join(steps)}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{x:.10g}" for x in values)


def _table(rows: list[tuple[str, str]]) -> str:
    """A Markdown table; the first row is the header."""
    lines = [f"| {a} | {b.replace('|', chr(92) + '|')} |" for a, b in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]]) + "\n"
