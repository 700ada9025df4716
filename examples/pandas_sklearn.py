"""Use fc7 in pandas and scikit-learn: python examples/pandas_sklearn.py FOLDER [WEIGHTS].

FOLDER holds one subfolder per class. Needs pandas and the extras parquet and sklearn. Without
WEIGHTS, BVLC's are used, and downloaded if necessary.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tf_alexnet as ta

ta.extract_features(sys.argv[1], "fc7.parquet", weights=(sys.argv[2:] or ["imagenet"])[0])
table = pd.read_parquet("fc7.parquet").query("status == 'ok'")
x = np.stack(table["fc7"])
y = table["path"].map(lambda path: Path(path).parent.name)
classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
scores = cross_val_score(classifier, x, y, cv=2)
print(f"{len(table)} photos, {y.nunique()} classes: accuracy {scores.mean():.2f}")
