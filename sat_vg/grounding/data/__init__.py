"""Data of grounding: readers, checks, images, words and batches."""
