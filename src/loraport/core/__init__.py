"""Pure mathematics on tensors: no files, no logging, no choice of device, no global random numbers."""
