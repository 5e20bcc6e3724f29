"""Does a LoRA work on a model as it is? A verdict from headers and a few layers, before anything is made."""
