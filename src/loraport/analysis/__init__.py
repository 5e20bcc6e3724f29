"""What distillation and LoRA do to the weights, in the singular directions of the source, beside null models."""
