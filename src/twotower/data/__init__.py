"""Raw tables -> numbered arrays.

In reading order: `config.py` (what the recipe says), `sources/` (where tables come from), `tables.py` (how ours are
called), `engine.py` (what runs the expressions), `database.py` (DuckDB), `spark/` (Spark), `interactions.py` and
`features.py` (the tables and their checks), `raw.py` (a source's tables, kept as they were), `prepare.py` (types,
duplicates, minimum counts, positives), `fingerprint.py` and `located.py` (which data lies where, and whether it
changed), `columns.py` (a log as arrays, in memory or mapped), `split.py` (train, validation, test), `pieces.py` (a long
log, piece by piece), `profile.py` and `profile_page.py` (what `twotower validate` tells), `schema.py` (which column
feeds which tower), `vocabulary.py` (id <-> row), `feature_encoders.py` and `fitted_features.py` (columns -> arrays),
`item_columns.py` (the items table as filters read it), `histories.py` (who met what before when), `trends.py` (what was
popular when), `examples.py` and `batches.py` (training batches), `shards.py` (the train part on disk), `asked.py` (whom
validation asks of a long log), `windows.py` (histories read at once).
"""
