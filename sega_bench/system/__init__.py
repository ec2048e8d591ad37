"""Operating-system services: atomic writes, signals, threads, the garbage collector, progress."""
