"""Nearest-neighbour libraries beside each other, for `scale/ann.py`.

In reading order: `environment.py` (where the peers are installed), `libraries.py` (each of them behind the same few
calls), `ours.py` (twotower's indexes behind those calls), `worker.py` (a process that holds one of them), `worlds.py`
(items and queries), `contest.py` (tune to a recall, and time in turns).
"""
