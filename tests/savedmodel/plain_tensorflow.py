"""Ask a SavedModel with TensorFlow alone, as a stranger would: `plain_tensorflow.py SAVEDMODEL REQUESTS ANSWERS`.

REQUESTS is a JSON list of {"user_id": [...], "history": [[...]], "k": n}; what is refused is answered by its reason.
"""

import json
import sys
from pathlib import Path

sys.modules |= dict.fromkeys(("keras", "keras_rs", "tf_keras", "twotower"))  # None: not to be had.

import tensorflow as tf  # noqa: E402


def answer(signature, request):
    history = request["history"]
    width = max(map(len, history), default=0)
    padded = [each + [""] * (width - len(each)) for each in history]
    try:
        found = signature(
            user_id=tf.constant(request["user_id"], tf.string),
            history=tf.constant(padded, tf.string, shape=[len(history), width]),
            k=tf.constant(request["k"]),
        )
    except tf.errors.InvalidArgumentError as fault:
        return {"refused": str(fault)}
    return {
        "item_ids": [[item_id.decode() for item_id in row] for row in found["item_ids"].numpy().tolist()],
        "scores": found["scores"].numpy().tolist(),
        "fallback": [word.decode() for word in found["fallback"].numpy().tolist()],
    }


saved, requests, answers = map(Path, sys.argv[1:])
loaded = tf.saved_model.load(str(saved))
asked = json.loads(requests.read_text(encoding="utf-8"))
graph = loaded.signatures["recommend"].graph
content = {
    "signatures": sorted(loaded.signatures),
    "inputs": sorted(loaded.signatures["recommend"].structured_input_signature[1]),
    "operations": sorted({operation.type for operation in graph.get_operations()}),
    "answers": [answer(loaded.signatures["recommend"], request) for request in asked],
    "default": answer(loaded.signatures["serving_default"], asked[0]),
}
answers.write_text(json.dumps(content), encoding="utf-8")
