"""The command line: one command per step, `run` for all of them, and the commands that ask a bundle.

In reading order: `main.py` (the entry point, and what becomes of a fault), `options.py` (what several commands share),
`steps.py` (prepare, split, train, evaluate, index, bundle), `run.py`, `answers.py` (recommend, similar), `validate.py`,
`init.py` (a recipe from your own files), `guess.py` (which column is what), `tables.py` (results on the screen),
`progress.py` (how far a step is).
"""
