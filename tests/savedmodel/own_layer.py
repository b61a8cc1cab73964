"""A user's own layer, named by a recipe: it keeps running means beside its weights."""

import os

import keras


class Normalised(keras.layers.Layer):
    """Batch normalisation; FACTOR in the environment lets it say something else than it did in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = keras.layers.BatchNormalization(momentum=0.8)

    def call(self, features, training=False):
        return self.norm(features, training=training) * float(os.environ.get("FACTOR", "1"))
