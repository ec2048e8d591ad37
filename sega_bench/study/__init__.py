"""Studies: an Optuna sampler suggests settings, their cells run as plans, and their scores are told back.

A *trial* is one point of the search space, evaluated on the study's prompts, seeds and concepts. A *block* is
one prompt with one seed. Every trial sees the same blocks in the same order (common random numbers), so two
trials differ by their parameters alone. A trial's *resource* is its number of blocks.
"""
