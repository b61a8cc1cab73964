"""The command line: one command per step, `run` for the short path, `pipeline` for the whole, and what asks a bundle.

In reading order: `main.py` (the entry point, and what becomes of a fault), `options.py` (what several commands share),
`steps.py` (fetch, prepare, split, train, evaluate, index, gate, bundle, ...), `release.py` (register, deploy, rollback,
summarize), `run.py`, `tune.py` (better settings), `pipeline.py` (compile, run), `pipeline_server.py` (submit, schedule,
status) and `pipeline_progress.py` (how a run there goes on), `cluster.py` (kind and Kubeflow Pipelines: up, open,
status, doctor, down), `answers.py` (recommend, similar), `serve.py`, `keys.py` (who may ask a server), `events.py`
(what a server recorded: export, prune), `bench.py` (how it serves here), `export.py` (a SavedModel), `validate.py`,
`init.py` (a recipe from your own files), `guess.py` (which column is what), `tables.py` (results on the screen),
`progress.py` (how far a step is).
"""
