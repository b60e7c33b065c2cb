"""Lines of Python for model cards: what an image goes through before an exported file takes it."""

from sat_vg.backbone_finetuning.models.exports.contract import Contract
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Preprocessing


def prepare_lines(preprocessing: Preprocessing, contract: Contract) -> str:
    """Lines that define ``prepare``: an image → ``[C, H, W]`` as the file takes it; they need torch imported.

    8-bit RGB images are PIL images or uint8 tensors; others are tensors ``[C, H, W]`` of the values in the files.
    """
    size = contract.fixed_size or preprocessing.image_size
    is_rgb = preprocessing.bands == RGB and preprocessing.files is None
    mode = preprocessing.interpolation.upper()
    steps = ["v2.RGB()", "v2.PILToTensor()"] if is_rgb else []
    steps += [
        f"v2.Resize({size}, interpolation=v2.InterpolationMode.{mode}, antialias=True)",
        f"v2.CenterCrop({size})",
    ]
    if contract.dtype != "uint8":
        scale = ", scale=True" if preprocessing.scale == Preprocessing.scale else ""
        steps.append(f"v2.ToDtype(torch.float32{scale})")
        steps.append(f"v2.Normalize(mean={list(preprocessing.mean)}, std={list(preprocessing.std)})")
    takes = "a PIL image" if is_rgb else f"a tensor [C, H, W] of {', '.join(preprocessing.bands)}"
    body = "".join(f"    {step},\n" for step in steps)
    return f"prepare = v2.Compose([  # of {_one_line(takes)}\n{body}])"


def _one_line(text: str) -> str:
    """Names of bands come from a checkpoint: nothing of them may end the comment that they stand in."""
    return text if text.isprintable() and "`" not in text else "the bands above"
