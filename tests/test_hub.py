"""Models as folders of the Hugging Face Hub: saved, read and sent, without a network."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import lfvit
from lfvit.errors import CheckpointError
from lfvit.models import zoo
from lfvit.results import zoo as results_zoo
from lfvit.results.zoo import read_card
from lfvit.runs.models import load_trained


@pytest.fixture
def saved(trained_run, tmp_path):
    model = lfvit.Pretrained.from_checkpoint(trained_run, threshold=0.6)
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


def test_saved_and_read_again(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "README.md"),
    }
    again = lfvit.Pretrained.from_pretrained(f"hf:{folder}")
    assert again.record == model.record
    assert again.record.threshold == 0.6
    images = torch.randn(3, 3, 112, 112)
    expected = model.infer(images)
    assert torch.equal(again.infer(images).logits, expected.logits)
    assert torch.equal(again(images).logits[1], model(images).logits[1])
    metadata = ModelCard.load(folder / "README.md").data
    assert (metadata.library_name, metadata.pipeline_tag) == ("lfvit", "image-classification")
    assert f"{len(model.record.classes)} classes" in (folder / "README.md").read_text()


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_commands_read_the_folder(saved, prefix):
    model, folder = saved
    trained = load_trained(f"{prefix}{folder}")
    assert trained.record == model.record
    for name, value in model.model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], value)


def test_the_zoo_is_the_same(tmp_path):
    model = lfvit.Pretrained.from_pretrained("zoo:lf_vit_imagenette")
    card = read_card("zoo:lf_vit_imagenette")
    assert model.card == {key: value for key, value in card.items() if key != "record"}
    model.save_pretrained(tmp_path)
    own = zoo.FOLDER / "lf_vit_imagenette"
    assert (tmp_path / "README.md").read_text() == (own / "README.md").read_text()
    stored = load_file(own / "model.safetensors")
    assert all(
        torch.equal(v.float(), stored[k].float())
        for k, v in load_file(tmp_path / "model.safetensors").items()
    )


def test_without_a_network_one_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/nothing", "not a name"):
        with pytest.raises(CheckpointError, match=r"cannot be had from the Hub \(.+\); check the"):
            load_trained(f"hf:{name}")
        with pytest.raises(CheckpointError, match="cannot be had from the Hub"):
            lfvit.Pretrained.from_pretrained(name)


def test_a_repository_of_something_else(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    for name in ("a/b", str(tmp_path), ""):
        with pytest.raises(CheckpointError, match=f"hf:{name}: has no model.safetensors"):
            load_trained(f"hf:{name}")


def test_a_model_is_sent_as_it_is(monkeypatch, capsys):
    sent = []

    class Api:
        def create_repo(self, repo, exist_ok):
            sent.append((repo, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(results_zoo, "HfApi", Api)
    results_zoo.main(["--name", "vit_needle", "--push", "me/vit"])
    files = ["README.md", "card.json", "config.json", "model.safetensors"]
    assert sent == [("me/vit", True), ("me/vit", files)]
    assert "ckpt_path=hf:me/vit" in capsys.readouterr().out
    monkeypatch.setattr(Api, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(CheckpointError, match="hf auth login"):
        results_zoo.push("vit_needle", "me/vit")
    assert json.loads((zoo.FOLDER / "vit_needle" / "config.json").read_text())["classes"]
