"""Locate, identify and validate Stable Diffusion checkpoints, then load their networks."""
