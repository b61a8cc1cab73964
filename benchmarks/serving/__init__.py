"""How fast and how steadily the server answers: the real one, in a process of its own, asked over HTTP.

`driving.py` holds what they do alike, `bundles.py` makes what is served.
"""
