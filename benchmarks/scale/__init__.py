"""How cost grows with the work.

`watched` (a process's time and memory), `growth` (tables, interactions, memory), `hundred_million` (the whole path).

`time_to_quality` and `to_quality` (its process): how soon a model is as good as TFRS's.
"""
