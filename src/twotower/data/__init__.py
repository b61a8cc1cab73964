"""Raw tables -> numbered arrays.

In reading order: `sources/` (where tables come from), `fingerprint.py` (whether
they changed), `tables.py` (how ours are called), `database.py` (the DuckDB session), `interactions.py` and
`features.py` (the tables and their checks), `prepare.py` (types, duplicates, minimum counts, positives), `split.py`
(train, validation, test), `profile.py` (what `twotower validate` tells), `schema.py` (which column feeds which tower),
`vocabulary.py` (id <-> row), `feature_encoders.py` and
`fitted_features.py` (columns -> arrays), `histories.py` (who met what before when),
`batches.py` (training batches).
"""
