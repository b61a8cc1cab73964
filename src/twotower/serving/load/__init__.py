"""How a server does under load, measured from outside.

In reading order: `child.py` (a server in a process of its own), `pool.py` (connections), `generator.py` (an open-loop
load, and the rate a server can bear), `measuring.py` (who asks, and what comes of it).
"""
