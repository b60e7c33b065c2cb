"""The commands of grounding."""
