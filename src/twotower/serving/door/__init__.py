"""What every request passes on its way in and out.

In reading order: `keys.py` (keys with scopes), `routing.py` (which scope a path takes), `door.py` (id, key, body),
`connections.py` (how long a client may take, who is sent away), `admission.py` (whose turn it is),
`telemetry.py` (figures), `logs.py` (lines), `tracing.py` (spans).
"""
