"""Compare photos layer by layer: python examples/compare_layers.py PHOTO PHOTO PHOTO...

Prints the correlation distance between all pairs of photos for every layer: the representational
dissimilarity matrices (Kriegeskorte et al. 2008) used in comparisons with brains or behaviour.
"""

import sys
from pathlib import Path

import numpy as np

import tf_alexnet as ta

layers = ["conv1", "conv2", "conv3", "conv4", "conv5"]
extractor = ta.FeatureExtractor("torchvision-convs", layers)  # "imagenet" adds fc6 and fc7
blobs = extractor(extractor.preprocess([ta.load_image(path) for path in sys.argv[1:]]))
for layer, blob in blobs.items():
    dissimilarity = 1 - np.corrcoef(blob.reshape(len(blob), -1))
    print(layer)
    for path, row in zip(sys.argv[1:], dissimilarity, strict=True):
        print("  " + " ".join(f"{value:5.2f}" for value in row), Path(path).name)
