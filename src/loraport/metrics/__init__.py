"""What can be measured of a clip: pixels in, numbers out. `measures.py` lists all of it with what each means.

A clip is uint8 RGB, frames x height x width x 3; a still is a clip of one frame.
"""
