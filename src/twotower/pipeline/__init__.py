"""Room 7: the path as a Kubeflow pipeline, from laptop to cluster.

In reading order: `pipeline.py` (which step follows which), `components.py` (one per step), `inside.py` (what their
bodies share), `image.py` (how images are called), `profile.py` (where it runs and what it may use), `dress.py` (the
profile put onto a task), `compile.py` (the pipeline as a file), `local.py`, `local_child.py` and `local_log.py` (run on
this machine), `interrupts.py` (ended on the way), `docker_runner.py` (its tasks as containers), `server.py` (a
connection to a Kubeflow Pipelines server), `submit.py`, `schedule.py`, `follow.py`, `tasks.py` and `pods.py` (start a
run there and watch it), `trainjob.py` and `trainjob_on_cluster.py` (training handed to Kubeflow Trainer).
"""
