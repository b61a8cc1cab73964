"""What becomes of a bundle: kept as a version, promoted or refused, deployed, rolled back.

In reading order: `registry.py` (the versions, and which of them is the champion), `smoke.py` (a real server asked real
questions), `target.py` (where a version answers from), `manifests.py` (the Kubernetes objects of `deploy/`), `kube.py`
(the few things asked of the Kubernetes API), `deployment.py` (applied to a cluster, and taken back), `summary.py` (what
a run tells when it ends).
"""
