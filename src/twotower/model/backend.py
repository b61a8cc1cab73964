"""Keras, imported without pandas: whoever needs Keras takes it from here.

Keras looks for pandas to take its tables, which nobody gives it here. Importing pandas takes about half a second of a
command's start, and 30 MB.
"""

import sys

_HIDDEN = "pandas"
_hides = _HIDDEN not in sys.modules
if _hides:
    sys.modules[_HIDDEN] = None  # type: ignore[assignment] # As Python's import has it: not to be found.
try:
    import keras as keras
    import keras_rs as keras_rs
    from keras import ops as ops
finally:
    if _hides:
        del sys.modules[_HIDDEN]
