"""LoRA files in and out: what each key is, the scale, the dialects, writing and checking."""
