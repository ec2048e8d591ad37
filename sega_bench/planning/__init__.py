"""From a configuration to a plan: prompts read, every cell resolved and checked, nothing run."""
