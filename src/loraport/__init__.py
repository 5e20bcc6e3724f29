"""loraport: carry a LoRA from a base video diffusion model to its distilled variant, from weights alone."""

__version__ = "0.1.0"
