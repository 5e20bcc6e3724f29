"""Cache and resume in one: content-addressed safetensors entries."""
