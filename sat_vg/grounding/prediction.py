"""``sat-vg ground predict``: the box of a phrase in an image."""

import json

import torch
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import choose_device
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.config import PredictOptions
from sat_vg.grounding.model import GroundingModel, Prediction


def predict(options: PredictOptions) -> Prediction:
    """Find a phrase in an image, and draw the box where that is asked for.

    Raises:
        UserError: the model or the image cannot be read, or the phrase has no words.
    """
    if options.out is not None and not options.out.lower().endswith(".png"):
        raise ConfigError(f"out = {options.out!r}: a .png file is written; for example found.png")
    model = GroundingModel.load_checkpoint(expand_home(options.checkpoint)).to(choose_device(options.device))
    pixels = decode_rgb(expand_home(options.image))
    found = model.predict(pixels, options.phrase)
    assert isinstance(found, Prediction), "of one phrase"
    box = [round(side, 1) for side in found.box]
    if options.json:
        say(
            json.dumps({"image": options.image, "phrase": options.phrase, "box": box, "score": round(found.score, 4)})
        )
    else:
        say(f"{options.phrase}: box {', '.join(map(str, box))} (x1, y1, x2, y2 in pixels), score {found.score:.2f}")
    if options.out is not None:
        width = max(2, max(pixels.shape) // 200)
        picture = draw_bounding_boxes(pixels, torch.tensor([found.box]), colors=(255, 0, 255), width=width)
        with atomic_write(expand_home(options.out)) as file:
            to_pil_image(picture).save(file, "PNG")
        say(f"{options.out}: the image with the box")
    return found
