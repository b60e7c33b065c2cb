"""Batches of augmented images, in a seeded order."""
