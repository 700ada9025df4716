"""Train a classifier on frozen features: python examples/fine_tune.py FOLDER.

FOLDER holds one subfolder per class. Uses the ImageNet-trained convolutions that come with the
package, so nothing is downloaded.
"""

import sys
from pathlib import Path

import keras
import numpy as np

import tf_alexnet as ta

classes = sorted(folder.name for folder in Path(sys.argv[1]).iterdir() if folder.is_dir())
base = ta.AlexNet("torchvision-convs", include_top=False, pooling="avg")
base.trainable = False

files = [(p, i) for i, name in enumerate(classes) for p in Path(sys.argv[1], name).iterdir()]
x = ta.preprocess_input([ta.load_image(path) for path, _ in files], preset=ta.preset_of(base))
y = np.array([label for _, label in files])
order = np.random.default_rng(0).permutation(len(y))

model = keras.Sequential([base, keras.layers.Dense(len(classes), activation="softmax")])
model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x[order], y[order], validation_split=0.25, epochs=6, batch_size=32, verbose=2)
print(f"validation accuracy {history.history['val_accuracy'][-1]:.2f} over {', '.join(classes)}")
