"""A training run: settings, loop, optimizers, checkpoints."""
