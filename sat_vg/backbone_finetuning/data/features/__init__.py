"""The output of frozen stages, computed once and stored."""
