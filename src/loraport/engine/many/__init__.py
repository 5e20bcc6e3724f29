"""Many LoRAs of one pair in one job: which files, the plan, the work by layers, the outputs, what became of each."""
