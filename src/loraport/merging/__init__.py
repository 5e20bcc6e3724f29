"""LoRAs baked into a checkpoint, which keeps its own layout."""
