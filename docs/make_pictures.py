"""Draw the pictures of these pages: python docs/make_pictures.py, in the project's folder.

The commands in pictures.md draw the others. All use the convolutions that come with the package and
the example photos.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import tf_alexnet as ta

PHOTOS = Path("examples/photos")
PICTURES = Path("docs/pictures")
BLUE, RED, GREEN, INK = "#0072B2", "#D55E00", "#009E73", "#222222"
KINDS = {  # a photo to train on and another to validate with, for the heat maps
    "animal": ("chelsea", "raccoon"),
    "galaxies": ("galaxies_1", "galaxies_2"),
    "person": ("astronaut", "hopper"),
    "wall": ("wall_1", "wall_2"),
}


def tf_alexnet(*arguments):
    """Run the command line, quietly."""
    subprocess.run([sys.executable, "-m", "tf_alexnet", *map(str, arguments), "-q"], check=True)


def commands(folder):
    """Pictures that `tf-alexnet visualize` draws."""
    convs = ("-w", "torchvision-convs")
    layers = [word for name in ("conv1", "pool1", "conv5") for word in ("--layer", name)]
    photo = PHOTOS / "chelsea.jpg"
    tf_alexnet("visualize", "activations", photo, *convs, *layers, "-o", folder / "activations.png")
    tf_alexnet("extract", PHOTOS, "-o", folder / "features.h5", *convs, "-l", "pool5")
    queries = [word for pair in KINDS.values() for word in ("--query", PHOTOS / f"{pair[0]}.jpg")]
    sheet = folder / "neighbours.png"
    tf_alexnet("visualize", "neighbours", folder / "features.h5", "-k", 3, *queries, "-o", sheet)
    for kind, names in KINDS.items():
        for part, name in zip(("train", "val"), names, strict=True):
            place = folder / "kinds" / part / kind
            place.mkdir(parents=True)
            shutil.copy(PHOTOS / f"{name}.jpg", place)
    tf_alexnet("train", folder / "kinds", "-o", folder / "RUN", *convs)
    for method in ("gradcam", "occlusion"):
        target = folder / f"{method}.png"
        options = ("--model", folder / "RUN", "--class", "animal", "--method", method)
        tf_alexnet("visualize", "saliency", PHOTOS / "raccoon.jpg", *options, "-o", target)


def smaller(folder):
    """Write them as small JPEGs."""
    for path in sorted(folder.glob("*.png")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
        image.save(PICTURES / f"{path.stem}.jpg", quality=82, optimize=True)


def figure(width, height):
    """A figure and its only plot."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.add_subplot()


def save(drawing, name):
    """Write a reproducible SVG."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        drawing.savefig(PICTURES / name, metadata={"Date": None, "Creator": None})


def geometry():
    """Where the kernels of conv1 stand at both ends of a row of pixels."""
    cases = (
        ("227, no padding: 55 positions, nothing left over", 227, 0, 55, BLUE),
        ("224, no padding: 54 positions, one pixel left over", 224, 0, 54, RED),
        ("227, padding SAME: 57 positions, one more at each end", 227, 4, 57, RED),
    )
    drawing = Figure(figsize=(9, 4.6), layout="constrained")
    axes = drawing.subplots(3, 2, sharey=True)
    for row, (title, size, pad, count, colour) in zip(axes, cases, strict=True):
        for side, plot in enumerate(row):
            start = -7 if side == 0 else size - 24
            plot.set_xlim(start, start + 32)
            plot.set_ylim(0.2, 5)
            plot.add_patch(Rectangle((0, 0.5), size, 0.7, color="#dddddd"))
            for i in range(count):
                left = i * 4 - pad
                level = 1.5 + i % 3 * 1.1
                plot.add_patch(
                    Rectangle((left, level), 11, 0.8, facecolor=colour, alpha=0.55, edgecolor=INK)
                )
                if start <= left + 4 <= start + 29:
                    plot.text(left + 5.5, level + 0.4, i, ha="center", va="center", fontsize=8)
            plot.set_yticks([])
            ticks = [0, 10, 20] if side == 0 else [size - 20, size - 10, size]
            plot.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
            for edge in ("top", "left", "right"):
                plot.spines[edge].set_visible(False)
        row[0].set_title(title, loc="left", fontsize=10, color=INK)
    axes[2, 0].set_xlabel("pixel, left end of the row", fontsize=9)
    axes[2, 1].set_xlabel("pixel, right end", fontsize=9)
    save(drawing, "geometry.svg")


def normalisation():
    """Response normalisation with Caffe's alpha and two common mistakes."""
    x = np.linspace(0, 1500, 400)
    drawing, plot = figure(7, 3.8)
    for alpha, style, colour, text in (
        (2e-5, "-", BLUE, "0.0001 / 5 = 0.00002: what Caffe computes"),
        (1e-4, "--", RED, "0.0001 passed on to TensorFlow"),
        (4e-6, ":", GREEN, "0.00002 / 5: divided twice"),
    ):
        y = x / (1 + alpha * 5 * x**2) ** 0.75
        plot.plot(x, y, style, color=colour, label=text, linewidth=2)
    plot.set(xlabel="value of all five channels", ylabel="normalised value", xlim=(0, 1500))
    plot.set_ylim(0, 190)
    plot.legend(title="alpha", frameon=False, loc="upper right")
    plot.spines[["top", "right"]].set_visible(False)
    save(drawing, "normalisation.svg")


def pooling():
    """Windows of overlapping and ordinary pooling over a row of 13."""
    drawing, plot = figure(7, 2.6)
    for i in range(13):
        plot.add_patch(Rectangle((i, 0), 1, 0.8, facecolor="#dddddd", edgecolor="white"))
        plot.text(i + 0.5, 0.4, i, ha="center", va="center", fontsize=9)
    for base, size, colour, text in (
        (1.1, 3, BLUE, "3 wide, stride 2: neighbours share a value"),
        (3.3, 2, RED, "2 wide, stride 2: one value is left over"),
    ):
        for i in range(6):
            spot = (2 * i + 0.04, base + (0.85 if i % 2 and size == 3 else 0))
            plot.add_patch(Rectangle(spot, size - 0.08, 0.7, facecolor=colour, alpha=0.55))
        plot.text(13.3, base + 0.6, text, va="center", fontsize=9)
    plot.set(xlim=(0, 22), ylim=(0, 4.2))
    plot.axis("off")
    save(drawing, "pooling.svg")


def dropout():
    """64 values of a dense layer in three steps of training, and at inference."""
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(0.2, 1, (8, 8)), 0)
    drawing = Figure(figsize=(9, 2.7), layout="constrained")
    for i, plot in enumerate(drawing.subplots(1, 4)):
        kept = rng.random((8, 8)) < 0.5 if i < 3 else np.ones((8, 8), bool)
        shown = np.where(kept, values * (2 if i < 3 else 1), np.nan)
        plot.imshow(shown, vmin=0, vmax=5, cmap="viridis")
        for y, x in zip(*np.nonzero(~kept), strict=True):
            plot.plot(x, y, "x", color="#999999", markersize=5)
        plot.set_title(
            f"training, step {i + 1}: twice the value" if i < 3 else "inference", fontsize=9
        )
        plot.set(xticks=[], yticks=[])
    save(drawing, "dropout.svg")


def colours():
    """A photo with colour noise along the principal components."""
    photos = [ta.load_image(path) for path in sorted(PHOTOS.glob("*.jpg"))]
    pixels = np.concatenate([photo[::4, ::4].reshape(-1, 3) for photo in photos]) / 255
    variances, directions = np.linalg.eigh(np.cov(pixels.T))
    photo = ta.load_image(PHOTOS / "hopper.jpg")[:380, 10:390][::2, ::2] / 255
    rng = np.random.default_rng(5)
    noises = [directions @ (rng.normal(0, 0.1, 3) * variances) for _ in range(5)]
    times = (1, 1, 20, 20, 20)
    changed = [photo + noise * n for noise, n in zip(noises, times, strict=True)]
    sheet = [np.clip(x, 0, 1) for x in (photo, *changed)]
    strip = np.concatenate(
        [np.pad(x, ((0, 0), (0, 6), (0, 0)), constant_values=1) for x in sheet], 1
    )
    Image.fromarray((strip * 255).round().astype(np.uint8)).save(
        PICTURES / "colours.jpg", quality=85
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        commands(Path(name))
        smaller(Path(name))
    geometry()
    normalisation()
    pooling()
    dropout()
    colours()
