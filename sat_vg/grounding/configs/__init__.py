"""Settings of grounding; free of torch."""
