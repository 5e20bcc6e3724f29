"""Does a transfer help, by how much, and when? Methods x LoRAs x targets on the tiny models, with intervals.

`tasks` says what each LoRA was to teach; `judge` and `statistics` score clips; `estimates` holds means, gain ratios
and Frechet distances with a shared bootstrap; `clips` samples each thing once; `run` puts the four anchors and the
methods together; `evidence` writes numbers, `tables` and `plots`; `drift` looks at the weights alone. Needs diffusers,
peft and matplotlib; nothing is imported before it is used.
"""
