"""ROOM 3: candidate embeddings -> the best items for a query.

In reading order: `config.py` (what the recipe says), `contract.py` (what every index promises), `exact.py` (the
standard), `selector.py` (a mask in faiss's terms), `reach.py` (how far a search of lists goes), `inverted.py`,
`partitioned.py` and `graph.py` (for large catalogues: lists of neighbours, by faiss or by ScaNN, or a graph of them),
`huge_pages.py` (where ScaNN's lie), `tune.py` (how far a search has to go), `build.py` (choose, measure, save, load).
"""
