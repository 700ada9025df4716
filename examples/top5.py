"""Classify photos: python examples/top5.py PHOTO... (downloads the weights if necessary)."""

import sys

import tf_alexnet as ta

model = ta.AlexNet(weights="imagenet")
for path in sys.argv[1:]:
    x = ta.preprocess_input([ta.load_image(path)], preset=ta.preset_of(model))
    (best,) = ta.decode_predictions(model.predict(x, verbose=0), top=5)
    print(path)
    for synset, label, probability in best:
        print(f"  {probability:.4f}  {synset}  {label}")
