"""Which bundles answer, and how that changes while requests come in.

In reading order: `checking.py` (may this bundle answer?), `deployment.py` (variants, swap, promotion, roll-back),
`watching.py` (a registry's champion, followed).
"""
