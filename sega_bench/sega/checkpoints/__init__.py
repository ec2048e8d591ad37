"""Checkpoints: what is asked for, found, identified and checked; then, part by part, read."""
