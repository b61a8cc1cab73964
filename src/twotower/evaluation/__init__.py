"""Room 4: how good a model is, exactly.

Reading order: `config` (what the recipe says), `names` (how contenders and metrics are called), `queries` (what is
asked), `ranks` (exact ranks of what was relevant), `metrics` (figures from ranks), `contenders`, `model_contender`,
`baselines`, `ials` and `markov` (who takes part), `contest` (one contender, all queries), `tuning` (the baselines at
their best), `bootstrap` and `segments` (how sure, and for whom), `bias` (the baseline of the labels), `labels` (the
ranking heads' predictions), `joining` (the joint model beside models of one task each), `examples`, `audit_features`
and `audit` (whether anything leaked), `evaluate` (all of it as one report), `charts` and `report` (the report to be
read), `gate` (whether a candidate may take the champion's place).
"""
