"""A bundle and who asks -> an answer on rows, and in words.

In reading order: `results.py` (what an answer holds), `put.py` (items put since the bundle was made), `catalogue.py`
(what can come), `asking.py` (who asks, in the model's terms), `stages.py` (leave out, rank), `filters.py` and
`filtering.py` (conditions on items), `rules.py` (the recipe's rules), `ruled_rows.py` and `selection.py` (how they are
worked out), `answering.py` (retrieve, rank, lay the rules over it), `explaining.py` (which items met pulled one up),
`wording.py` (the answer in words), `batches.py` (for many users at once), `neighbours.py` (the items most like one).
"""
