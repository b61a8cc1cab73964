"""Room 4: how good a model is, exactly.

Reading order: `config` (what the recipe says), `names` (how contenders and metrics are called), `queries` (what is
asked), `ranks` (exact ranks of what was relevant), `metrics` (figures from ranks), `contenders`, `model_contender` and
`baselines` (who takes part), `contest` (one contender, all queries), `bootstrap` and `segments` (how sure, and for
whom), `labels` (the ranking heads' predictions), `examples`, `evaluate` (all of it as one report), `charts` and
`report` (the report to be read), `gate` (whether a candidate may take the champion's place).
"""
