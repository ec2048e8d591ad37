"""What the program needs of the machine: whole files, signals, threads, the garbage collector, progress."""
