"""The whole story on the bundled models, offline: `run` does it, `clips` samples, `words` says what came out."""
