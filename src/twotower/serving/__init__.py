"""ROOM 6: a bundle -> answers.

In reading order: `answers/` (who asks, what can come, both stages, rules; rows and arrays), `recommender.py` (all of it
together; no HTTP), `store/` (events and items that came since), `live/` (which bundles answer, and how that changes),
`door/` (who is let in, whose turn it is, what is measured and logged), `api/` (messages, routes, the page), `http.py`
(the server), `load/` (how it does under load).
"""
