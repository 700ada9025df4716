"""Extract fc7 and find similar photos: python examples/fc7_features.py FOLDER [WEIGHTS].

Without WEIGHTS, BVLC's are used, and downloaded if necessary.
"""

import sys

import h5py
import numpy as np

import tf_alexnet as ta

folder, weights = sys.argv[1], (sys.argv[2:] or ["imagenet"])[0]
report = ta.extract_features(folder, "fc7.h5", weights=weights, layers=["fc7"])
for path, code, detail in report.errors:
    print(f"skipped {path}: {code}, {detail}")

with h5py.File("fc7.h5") as file:
    paths = list(file["paths"].asstr())
    fc7 = file["fc7"][:]  # (photos, 4096) float32, after the ReLU; row i belongs to paths[i]
    print(f"{len(paths)} photos, weights {file.attrs['weights_digest'][:19]}...")

unit = fc7 / np.linalg.norm(fc7, axis=1, keepdims=True)
similarity = unit @ unit.T - 2 * np.eye(len(unit))
for path, row in zip(paths, similarity, strict=True):
    print(f"{path} is most like {paths[row.argmax()]} ({row.max():.2f})")
