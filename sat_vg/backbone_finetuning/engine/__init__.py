"""Phases, the training loop, checkpoints and tracking."""
