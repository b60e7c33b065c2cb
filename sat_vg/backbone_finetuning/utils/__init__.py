"""Small modules, each named for what it does."""
