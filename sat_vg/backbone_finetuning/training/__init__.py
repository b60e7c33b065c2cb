"""Everything that only training uses; the recipe is run.py."""
