"""From class folders to seeded uint8 batches."""
