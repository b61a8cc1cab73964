"""Fitting the joint model.

Reading order: `config` (what the recipe says), `refusals` (what cannot be), `train` (what is learned from, and what
with), `run` (epochs, early stopping), `progress` (what it tells), `supply` (examples from memory or from disk), `plan`
(which examples when), `step` (one compiled step), `embeddings` (sparse tables), `validation` (what early stopping
watches), `alarms` (a model that has learned nothing), `checkpoints`, `distributed` (one run by several processes),
`launch` (their start and end on one machine), `warm_start` (beginning where an earlier model ended), `calibration`
(predictions that can be taken literally), `order` (how much ranking has a say), `fit` (all of these: a model's
directory), `single_tasks` (models of one task each, to be set beside the joint one), `compiled` (what the next run need
not compile, and what is compiled beside).
"""
