"""Running models: anything that predicts a velocity, how it is sampled, and the ready-made runners for diffusers' Wan.

Shared by calibration, evaluation and the demo. Nothing here knows what a clip is sampled for.
"""
