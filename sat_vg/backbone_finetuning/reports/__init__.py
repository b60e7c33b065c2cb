"""Tables and figures drawn from plain arrays."""
