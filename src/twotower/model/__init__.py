"""The mathematics: no files, no loops over data.

Reading order: `config` (what the recipe says), `encoders` (a feature's numbers -> a piece of a tower's input),
`towers`, `sampling`, `losses`, `retrieval`, `ranking`, `joint` (both tasks, one loss); then `export` (-> ONNX) and
`exported` (the same model without Keras: what evaluation and the server run).
"""

import os

# Keras reads this once, when it is first imported. Our training step is written in JAX.
os.environ["KERAS_BACKEND"] = "jax"
