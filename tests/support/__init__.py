"""What tests of several rooms share: stand-ins, tiny checkpoints, finished sweeps, servers."""
