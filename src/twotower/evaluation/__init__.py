"""Room 4: how good a model is, exactly.

Reading order: `queries` (what is asked), `ranks` (exact ranks of what was relevant), `metrics` (figures from ranks),
`contenders`, `model_contender` and `baselines` (who takes part), `contest` (one contender, all queries), `bootstrap`
and `segments` (how sure, and for whom), `labels` (the ranking heads' predictions), `examples`, `evaluate` (all of it
as one report), `charts` and `report` (the report to be read).
"""
