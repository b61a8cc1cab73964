"""The mathematics: no files, no loops over data.

Reading order: `config` (what the recipe says), `backend` (Keras), `encoders` (a feature's numbers -> a piece of a
tower's input), `sequence` (a history read in its order), `towers`, `sampling`, `losses`, `retrieval`, `blocks` (a loss
by blocks of queries), `memory` (a history beside a candidate), `experts` (what joint tasks share), `ranking`, `network`
(the layers together), `task_weights` (many losses -> one), `joint` (both tasks); then `export` (-> ONNX), `calibrated`
(what is told of a prediction), `graph_file` (the weights in an ONNX file) and `exported` (the same model without Keras:
what evaluation and the server run).
"""

import os

# Keras reads this once, when it is first imported: `savedmodel.build` has imported it before, for TensorFlow. Our
# training step is written in JAX.
os.environ["KERAS_BACKEND"] = "jax"
