"""The same prompts and seeds on real pipelines: a LoRA on its own model, and what becomes of it on another."""
