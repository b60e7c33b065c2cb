"""Values that settings of grounding may have."""

from typing import Literal

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")
BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
Resume = Literal["auto", "never"]
OnBadRecord = Literal["error", "skip"]
