"""A grounding model answers the same for an image in memory as for its file, and refuses what is no image."""

import numpy as np
import pytest
import torch
from PIL import Image

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.errors import UserError
from sat_vg.grounding import GroundingModel
from sat_vg.grounding.network import Sizes
from sat_vg.grounding.words import Vocabulary


@pytest.fixture(scope="module")
def model() -> GroundingModel:
    source = FineTuneModel("squeezenet1_1", 2, pretrained=False, image_size=64, seed=0)
    torch.manual_seed(0)
    return GroundingModel(source, Vocabulary(("ship",)), Sizes(64, 8, 24, 1, 1, 3, 0.0)).eval()


def test_an_image_in_memory_is_read_as_its_file(model, tmp_path):
    """A photograph that its EXIF says to turn is turned."""
    path, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 40)).save(path, exif=exif)
    upright = decode_rgb(path)
    assert tuple(upright.shape) == (3, 64, 40)
    found = model.predict(path, "ship")
    for image in (Image.open(path), upright, upright.permute(1, 2, 0).numpy()):
        assert model.predict(image, "ship") == found
    for wrong in (upright.float(), upright[None], upright[0], upright[0].numpy(), 5, [path]):
        with pytest.raises(UserError):
            model.predict(wrong, "ship")
