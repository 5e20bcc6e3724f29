"""LoRAs, targets and settings against each other: one job, one folder of outputs, one index of what became of each."""
