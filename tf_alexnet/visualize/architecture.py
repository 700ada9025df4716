"""A network's table as text, Markdown, JSON and SVG."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from tf_alexnet.architectures import Architecture, LayerRow
from tf_alexnet.errors import UsageError
from tf_alexnet.files import check_folder, replacing
from tf_alexnet.version import VERSION

_HEADS = ("layer", "type", "kernel", "stride", "pad", "groups", "output")
_FIGURES = ("parameters", "multiply-adds", "field")
_WIDTHS = (7, 8, 6, 6, 4, 6, 11, 11, 14, 6)


def architecture_text(table: Architecture) -> str:
    """The table as text: one line per blob, and totals."""
    rows = [*_cells(table), _totals(table)]
    lines = [f"{table.name}: {table.title}", ""]
    for row in ((*_HEADS, *_FIGURES), *rows):
        cells = [
            cell.ljust(width) if i in (0, 1, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, _WIDTHS, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def architecture_markdown(table: Architecture) -> str:
    """The table as Markdown."""
    heads = (*_HEADS, *_FIGURES)
    lines = [f"# {table.name}", "", f"{table.title}.", ""]
    lines.append(f"| {' | '.join(heads)} |")
    lines.append("|" + "".join("---|" if i in (0, 1, 6) else "---:|" for i in range(len(heads))))
    lines += [f"| {' | '.join(row)} |" for row in (*_cells(table), _totals(table))]
    return "\n".join(lines)


def architecture_record(table: Architecture) -> dict[str, Any]:
    """The table as a dict, for JSON."""
    rows = list(table.rows())
    layers = [
        {**asdict(row), "parameters": row.parameters, "multiply_adds": row.multiply_adds}
        for row in rows
    ]
    return {
        "name": table.name,
        "title": table.title,
        "input_size": table.input_size,
        "channels": table.channels,
        "preset": table.preset,
        "parameters": table.parameters,
        "multiply_adds": sum(row.multiply_adds for row in rows),
        "layers": layers,
    }


def _cells(table: Architecture) -> Iterator[tuple[str, ...]]:
    for row in table.rows():
        numbers = (row.kernel, row.stride, row.pad, row.groups)
        counts = (row.parameters, row.multiply_adds)
        yield (
            row.name,
            row.kind,
            *("" if n is None else str(n) for n in numbers),
            "x".join(map(str, row.output_shape)),
            *(f"{n:,}" if n else "" for n in counts),
            str(row.receptive_field),
        )


def _totals(table: Architecture) -> tuple[str, ...]:
    multiply_adds = sum(row.multiply_adds for row in table.rows())
    return ("total", *[""] * 6, f"{table.parameters:,}", f"{multiply_adds:,}", "")


def check_architecture(path: str | os.PathLike) -> None:
    """Raise UsageError or OutputError if `save_architecture` can't write `path`."""
    if Path(path).suffix.lower() not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise UsageError(f"drawing {os.fspath(path)}", "unknown file type", f"Use {known}.")
    check_folder(path)


def save_architecture(table: Architecture, path: str | os.PathLike) -> None:
    """Write a network's table as ``.svg``, ``.md`` or ``.txt``.

    Raises
    ------
    UsageError, OutputError
        If the suffix is another one, or the file can't be written.
    """
    check_architecture(path)
    suffix = Path(path).suffix.lower()
    mark = "tf_alexnet {}" if suffix == ".txt" else "<!-- tf_alexnet {} -->"
    text = f"{_FORMATS[suffix](table)}\n\n{mark.format(VERSION)}\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


_COLUMN, _LEFT, _TOP, _LINE = 92, 104, 74, 19  # pixels of the drawing
_TOWER = 164  # height of a tower
# Okabe and Ito's palette, lightened for black text.
_FILLS = {
    **{"Input": "#dddddd", "Conv": "#8fc1e3", "LRN": "#f5e6a3", "MaxPool": "#f2b98a"},
    **{"Dense": "#8fd1b8", "Softmax": "#dcb0cd"},
}
_CAPTIONS = ("", "type", "output", "kernel", "stride, pad", "groups", "field", "parameters")


class _Box(NamedTuple):
    """A box of the drawing: where its left edge and its centre are, and its size."""

    left: float
    middle: float
    width: float
    height: float

    @property
    def inlet(self) -> tuple[float, float]:
        return self.left, self.middle

    @property
    def outlet(self) -> tuple[float, float]:
        return self.left + self.width, self.middle


def architecture_svg(table: Architecture) -> str:
    """Draw the network: towers, shapes, kernels and receptive fields.

    Box heights follow the logarithm of the map's side, widths that of its channel count. Networks
    with groups are drawn as two towers of half the channels each; lines cross where a layer sees
    both.

    Returns
    -------
    str
        SVG 1.1, with its own white background.
    """
    rows = list(table.rows())
    towers = max(conv.groups for conv in table.convolutions)
    width = _LEFT + _COLUMN * len(rows) + 12
    captions = _TOP + towers * _TOWER + 26
    height = captions + _LINE * len(_CAPTIONS) + 30
    boxes = [_boxes(row, number, towers) for number, row in enumerate(rows)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="Helvetica, Arial, '
        'DejaVu Sans, sans-serif" font-size="12" fill="#222222">',
        f"<title>{escape(table.name)}</title>",
        f"<desc>{escape(table.title)}</desc>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(14, 26, table.name, size=17, weight="bold"),
        _text(14, 46, table.title, fill="#555555"),
    ]
    for before, after, row in zip(boxes, boxes[1:], rows[1:], strict=False):
        parts += _lines(before, after, row)
    for row, some in zip(rows, boxes, strict=True):
        parts += [_drawn(box, row, len(some)) for box in some]
    for line, title in enumerate(_CAPTIONS):
        y = captions + _LINE * line
        parts.append(_text(14, y, title, fill="#555555"))
        for number, row in enumerate(rows):
            middle = _LEFT + _COLUMN * (number + 0.5)
            weight = "normal" if line else "bold"
            parts.append(_text(middle, y, _caption(row)[line], anchor="middle", weight=weight))
    totals = _totals(table)
    total = f"{totals[-3]} parameters, {totals[-2]} multiply-adds for a picture of "
    total += f"{table.input_size}x{table.input_size} {table.channels}"
    parts.append(_text(14, height - 14, total, fill="#555555"))
    return "\n".join([*parts, "</svg>"])


def _boxes(row: LayerRow, number: int, towers: int) -> list[_Box]:
    """One box per tower for spatial maps, one box for everything else."""
    spatial = len(row.output_shape) == 3
    count = towers if spatial and row.kind != "Input" else 1
    channels = row.output_shape[-1] // count
    height = 16 * math.log2(row.output_shape[0]) + 14 if spatial else 9 * math.log2(channels) + 14
    width = 10 + 6 * math.log2(channels) if spatial else 26
    left = _LEFT + _COLUMN * (number + 0.5) - width / 2
    share = towers * _TOWER / count
    middles = (_TOP + share * (i + 0.5) for i in range(count))
    return [_Box(left, middle, width, height) for middle in middles]


def _lines(before: list[_Box], after: list[_Box], row: LayerRow) -> Iterator[str]:
    """Lines between the boxes of adjacent columns."""
    apart = len(before) == len(after) and (row.kind != "Conv" or row.groups == len(after))
    for i, start in enumerate(before):
        for j, end in enumerate(after):
            if i == j or not apart:
                (x1, y1), (x2, y2) = start.outlet, end.inlet
                yield (
                    f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                    'stroke="#888888" stroke-width="1.5"/>'
                )


def _drawn(box: _Box, row: LayerRow, towers: int) -> str:
    """A box with the number of channels or units in it."""
    rectangle = (
        f'<rect x="{box.left:.1f}" y="{box.middle - box.height / 2:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}" rx="2" '
        f'fill="{_FILLS[row.kind]}" stroke="#333333"/>'
    )
    channels = str(row.output_shape[-1] // towers)
    x, turned = box.left + box.width / 2, ""
    if box.width < 30 and len(channels) > 2:
        turned = f' transform="rotate(-90 {x:.1f} {box.middle:.1f})"'
    return rectangle + _text(x, box.middle + 4, channels, anchor="middle", more=turned)


def _caption(row: LayerRow) -> tuple[str, ...]:
    """The text below a column."""
    moved = row.stride is not None
    return (
        row.name,
        row.kind,
        "×".join(map(str, row.output_shape)),
        f"{row.kernel}×{row.kernel}" if row.kernel else "",
        f"{row.stride}, {row.pad or 0}" if moved else "",
        str(row.groups) if row.groups else "",
        f"{row.receptive_field}×{row.receptive_field}",
        f"{row.parameters:,}" if row.parameters else "",
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12,
    weight: str = "normal", fill: str = "#222222", more: str = "",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{fill}"{more}>{escape(text)}</text>'
    )


_FORMATS = {".svg": architecture_svg, ".md": architecture_markdown, ".txt": architecture_text}
