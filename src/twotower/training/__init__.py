"""Fitting the joint model.

Reading order: `config` (what the recipe says), `train` (epochs, early stopping), `step` (one compiled step),
`embeddings` (sparse tables), `validation` (what early stopping watches), `checkpoints`, `warm_start` (beginning
where an earlier model ended).
"""
