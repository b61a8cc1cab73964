"""How cost grows with the work, and who does more of it in the same time.

`watched` (a process's time and memory), `growth` with `tables`, `plots` and `page` (tables, interactions, memory),
`hundred_million` (the whole path), `processes` (several beside one).

`time_to_quality` and `to_quality` (its process): how soon a model is as good as TFRS's. `throughput` and
`throughput_ours`: examples a second beside TFRS. `gpu` and `gpu_ours`: on one GPU, beside PyTorch. `ann`: the index
beside its peers. `given`: what a process that trains is told. `stepping`: compiled steps by hand, for `throughput`,
`gpu`, `growth` and `step_growth`.
"""
