"""LoRAs of a rank, a share or a size: of other LoRAs, and of the difference of two checkpoints."""
