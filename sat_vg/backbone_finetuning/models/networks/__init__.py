"""The table of backbones, their families and their measured facts."""
