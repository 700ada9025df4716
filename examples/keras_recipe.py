"""Keras's transfer-learning recipe: python examples/keras_recipe.py FOLDER.

FOLDER holds one subfolder per class, or train/ and val/ with one each; otherwise a fifth of the
photos is used for validation. Uses the ImageNet-trained convolutions that come with the package.
"""

import sys

import keras
import numpy as np

import tf_alexnet as ta
from tf_alexnet.training import read_photos

base = ta.AlexNet(weights="torchvision-convs", include_top=False)
x = keras.layers.Flatten()(base.output)
x = keras.layers.Dense(256, activation="relu")(x)
x = keras.layers.Dropout(0.5)(x)
photos = read_photos(sys.argv[1])
outputs = keras.layers.Dense(len(photos.classes), activation="softmax")(x)
model = keras.Model(base.input, outputs)
for layer in model.layers[:-10]:  # freeze everything up to pool1
    layer.trainable = False
print("training", ", ".join(layer.name for layer in model.layers if layer.trainable_weights))


def arrays(examples):
    images = [ta.load_image(example.path) for example in examples]
    x = ta.preprocess_input(images, preset=ta.preset_of(model))
    return x, np.array([example.label for example in examples])


optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
x, y = arrays(photos.train)
history = model.fit(x, y, validation_data=arrays(photos.val), epochs=4, batch_size=32, verbose=2)
print(f"validation accuracy {history.history['val_accuracy'][-1]:.3f}: {', '.join(photos.classes)}")
