"""Planning: reads prompts, and resolves a configuration into checked cells without running anything."""
