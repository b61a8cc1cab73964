"""ROOM 6: a bundle -> answers.

In reading order: `results.py` (what an answer holds), `asking.py` (who asks, in the model's terms), `stages.py`
(retrieve and leave out, then rank), `recommender.py` (all of it together; no HTTP), `messages.py` (what goes over the
wire), `http.py` (the server).
"""
