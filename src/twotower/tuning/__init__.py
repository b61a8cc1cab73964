"""Better settings for a recipe, by trials: on this machine, or on a cluster by Katib.

In reading order:

`tune.py`: trials, several at a time, until there are enough; the result.
`shared_data.py`: the split that they read; other data is refused before it takes that one's place.
`space.py`: what is tried, checked before any trial; the recipe that values give.
`study.py`: the trials so far in one SQLite file: what to try next, which trials to end.
`worker.py`: a process that trains one trial after another.
`results.py`: the table, the best recipe.
`page.py`: the study as a page.
`charts.py`: its charts.
`katib.py`: the same space as an Experiment for a cluster.
"""
