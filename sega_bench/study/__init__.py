"""A search in place of a sweep's axes: settings are asked for, run as cells, and told what they scored.

A *trial* is one setting over the study's prompts, seeds and concepts. A *block* is one prompt with one seed:
all trials see the same blocks in the same order, so that two of them differ by their settings alone.
"""
