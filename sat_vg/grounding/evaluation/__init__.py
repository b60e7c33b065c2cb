"""Metrics of grounding, and baselines beside them."""
