"""The grounding network, its losses and its file."""
