"""How good the recommendations are: one command a row of docs/quality.md.

In reading order: `rows.toml` (what each row asks, its targets and what others published), `measure.py` (what the rows
do alike), one module and one recipe a row (`ablations.toml` beside `ablations_base.toml`: its variants), `page.py`
(docs/quality.md from the results that were kept).
"""
