"""What came in since the bundle was made: durable once acknowledged.

In reading order: `contract.py` (events, items, and what every store promises), `sqlite.py` and `postgres.py` (the two
stores), `writer.py` (many small writes, one flush of the disk), `event_tables.py` (what the next training reads).
"""
