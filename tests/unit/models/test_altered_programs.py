"""Files of torch.export whose description cannot be read end in a sentence."""

import zipfile

import pytest

from sat_vg.backbone_finetuning.models.exports import torch_program
from sat_vg.backbone_finetuning.utils.errors import CheckpointError


@pytest.mark.parametrize("kind", ["encrypted", "deflated"])
def test_an_altered_archive_is_told(kind, tmp_path):
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"m/extra/{torch_program.DESCRIPTION}", "text " * 100)
    content = bytearray(path.read_bytes())
    if kind == "encrypted":
        content[content.index(b"PK\x01\x02") + 8] ^= 1
    else:
        content[content.index(torch_program.DESCRIPTION.encode()) + len(torch_program.DESCRIPTION)] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut short, altered"):
        torch_program._contract_in(path)
