"""ROOM 8: a cluster on this machine, with kind and Kubeflow Pipelines.

In reading order: `tools.py` (a command, and how one is run), `releases.py` (which releases can work), `plan.py` (every
command there is, and why), `shell.py` (the same commands as text for a shell), `preflight.py` (what the machine must
have), `workloads.py` (what is not ready, and why), `wait.py` (until all of it is), `forward.py` (the port-forward that
outlives us), `browser.py` (its page), `lifecycle.py` (up, open, status, down), `doctor.py` (what usually goes wrong,
and what mends it).
"""
