"""A BERT-like encoder from a local folder reads the phrases; it goes into the model's file."""

import json
import shutil

import pytest
import torch
from grounding_files import write_squares

from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.grounding import GroundingConfig, GroundingModel, train_grounding
from sat_vg.grounding.batches import pad_words
from sat_vg.grounding.config import EvaluateOptions
from sat_vg.grounding.evaluation import evaluate
from sat_vg.grounding.text import PretrainedText

transformers = pytest.importorskip("transformers")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "blue", "square", "squ", "##are", "on", "left")


def write_bert(root, **settings):
    """A tiny BERT with random weights, as ``save_pretrained`` writes one."""
    (root / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        **settings,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(root)
    transformers.BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("bert"))


@torch.no_grad()
def test_its_vectors_are_those_of_the_library(folder):
    text = PretrainedText.from_folder(folder, width=8).eval()
    bert = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    phrases = ["the red square", "the blue thing on the left"]
    expected = tokenizer(phrases, return_tensors="pt", padding=True)
    numbers = pad_words([text.encode(phrase.split(), 40) for phrase in phrases])
    found, is_padding = text(numbers)
    assert torch.equal(~is_padding, expected["attention_mask"].bool()) and is_padding.any()
    wanted = text.project(bert(**expected).last_hidden_state)
    torch.testing.assert_close(found[~is_padding], wanted[~is_padding])
    assert len(text.encode(["the", "red", "square", "on", "the", "left"], 4)) == 4


def test_a_run_learns_it_and_its_file_needs_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    copy = shutil.copytree(folder, tmp_path / "bert")
    config = GroundingConfig(
        data=str(write_squares(tmp_path, {"train": 6, "val": 2})), backbone="squeezenet1_1", weights="none",
        text_encoder=str(copy), image_size=64, width=16, num_heads=2, fusion_layers=1, num_epochs=1, batch_size=4,
        num_threads=1, checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    result = train_grounding(config)
    again = train_grounding(config)  # has finished: the state fits what is built anew
    assert again.metrics == result.metrics
    shutil.rmtree(copy)
    model = GroundingModel.load_checkpoint(result.best_model)
    before = transformers.AutoModel.from_pretrained(folder).state_dict()
    after = model.network.text.encoder.state_dict()
    assert list(after) == list(before)
    assert not torch.equal(after["embeddings.word_embeddings.weight"], before["embeddings.word_embeddings.weight"])
    found = model.predict(tmp_path / "val_1.png", ["the blue square", "the red square"])
    assert found[0] != found[1]
    model.save_checkpoint(tmp_path / "copy.pt")
    assert (
        GroundingModel.load_checkpoint(tmp_path / "copy.pt").predict(tmp_path / "val_1.png", "the blue square")
        == found[0]
    )

    content = load_tensors(result.best_model)
    own = json.loads(content["text"]["config"])
    for altered in (
        {**own, "hidden_size": 10**8},
        {**own, "vocab_size": 5},
        {**own, "num_hidden_layers": 10**9},
        {"model_type": "no such"},
    ):
        content["text"]["config"] = json.dumps(altered)
        save_tensors(tmp_path / "altered.pt", content)
        with pytest.raises(CheckpointError, match=r"altered\.pt"):
            GroundingModel.load_checkpoint(tmp_path / "altered.pt")


def test_no_more_tokens_are_read_than_the_encoder_has_positions(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bert").mkdir()
    config = GroundingConfig(
        data=str(write_squares(tmp_path, {"train": 6, "val": 2})), backbone="squeezenet1_1", weights="none",
        text_encoder=str(write_bert(tmp_path / "bert", max_position_embeddings=4)), image_size=64, width=16,
        num_heads=2, fusion_layers=1, num_epochs=1, batch_size=4, num_threads=1,
        checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    result = train_grounding(config)
    told = "data: 6 phrases of train are longer than 4 tokens; what is beyond is not read\n"
    assert told in capsys.readouterr().out
    GroundingModel.load_checkpoint(result.best_model).predict(tmp_path / "val_1.png", "the blue square on the left")
    # Which words the training phrases had is of no matter to it.
    row = {"image": "val_1.png", "phrase": "the blue thing", "box": [1, 1, 9, 9]}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    evaluate(EvaluateOptions(checkpoint=str(result.best_model), data=str(tmp_path), out=str(tmp_path / "found")))
    said = capsys.readouterr().out
    assert "data: 1 phrase of test is longer than 4 tokens; what is beyond is not read\n" in said
    assert "does not know" not in said
    roberta = transformers.RobertaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34,
    )  # fmt: skip
    text = PretrainedText(roberta.to_json_string(), (tmp_path / "bert/tokenizer.json").read_text(), 8)
    assert text.most_tokens == 32, "its positions begin behind that of padding"
    text(torch.full((1, 32), 4))


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"text_encoder = .* has to be a folder with config\.json"):
        PretrainedText.from_folder(tmp_path, 8)
