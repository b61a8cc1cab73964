"""Both stages as one TensorFlow SavedModel, for TensorFlow Serving.

In reading order: `tables.py` (what a bundle knows of users and items, as arrays that a graph can look up), `build.py`
(the graph; it alone loads TensorFlow, in a process of its own), `export.py` (checks, starts that process, puts the
result in its place).
"""
