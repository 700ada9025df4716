"""AlexNet as a step of a scikit-learn pipeline: python examples/sklearn_pipeline.py FOLDER.

FOLDER holds one subfolder per class, or train/ and val/ with one each; otherwise a fifth of the
photos is used for validation. Needs the extra sklearn; uses the convolutions in the package.
"""

import sys

from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.pipeline import make_pipeline

import tf_alexnet as ta
from tf_alexnet.training import read_photos

photos = read_photos(sys.argv[1])
paths, labels = zip(*photos.train, strict=True)
model = make_pipeline(
    ta.AlexNetFeatures("pool5", weights="torchvision-convs"),
    LogisticRegression(C=1e-4, max_iter=1000),
)
model.fit(paths, [photos.classes[label] for label in labels])

paths, labels = zip(*photos.val, strict=True)
names = [photos.classes[label] for label in labels]
print(classification_report(names, model.predict(paths), zero_division=0))
