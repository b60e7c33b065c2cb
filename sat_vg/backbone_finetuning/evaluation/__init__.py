"""How well a model does: shared by training and commands."""
