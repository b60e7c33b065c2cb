"""Backbones as ordered stages, the fine-tuned model and its feature extractor."""
