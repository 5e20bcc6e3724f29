"""CASA (Cluster-Aware Spectral Arbitration, arXiv 2605.01929), the paper's method and its mathematics.

Read `method` first; `routing` writes matrices in the source's singular directions (Eq. 2), `clusters` joins and picks
directions (Eqs. 3 to 6), `arbitration` finds the entries where LoRA and drift overshoot together. `bands` and `maps`
make the pictures of a layer, and change nothing.
"""
