"""ROOM 3: candidate embeddings -> the best items for a query.

In reading order: `config.py` (what the recipe says), `contract.py` (what every index promises), `exact.py` (the
standard), `approximate.py` (for large catalogues), `build.py` (choose, measure, save, load).
"""
