"""sat_vg: backbones that know satellite images, for visual grounding."""

__version__ = "0.1.0"
