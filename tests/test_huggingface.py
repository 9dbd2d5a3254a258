"""Audio models of the Hugging Face Hub: small ones with random weights, in a local folder."""

import sys

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import dynamic_module_utils
from transformers.modeling_outputs import BaseModelOutput

from myna.errors import ConfigError
from myna.huggingface import HuggingFace
from myna.peer import open_peer

WAVE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8),
    "conv_stride": (10, 16),
    "conv_kernel": (10, 16),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each class of models."""
    torch.manual_seed(0)
    whisper = hf.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=80,
        max_source_positions=50,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    made = {
        "wav2vec2": (hf.Wav2Vec2Model(hf.Wav2Vec2Config(**WAVE)), hf.Wav2Vec2FeatureExtractor(sampling_rate=24_000)),
        "hubert": (hf.HubertModel(hf.HubertConfig(**WAVE)), hf.Wav2Vec2FeatureExtractor()),
        "ast": (
            hf.ASTModel(hf.ASTConfig(max_length=128, num_mel_bins=32, **SHAPE)),
            hf.ASTFeatureExtractor(max_length=128, num_mel_bins=32),
        ),
        "whisper": (hf.WhisperModel(whisper), hf.WhisperFeatureExtractor(chunk_length=1)),
    }
    found = {}
    for name, (model, extractor) in made.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        extractor.save_pretrained(found[name])
    return found


def noise(model: HuggingFace, count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, model.window_samples)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate_hz", "window_samples"),
    [("wav2vec2", 24_000, 120_000), ("hubert", 16_000, 80_000), ("ast", 16_000, 20_480), ("whisper", 16_000, 16_000)],
)
def test_each_class_gives_its_hidden_states_at_its_own_rate_and_length(folders, name, rate_hz, window_samples):
    model = HuggingFace(str(folders[name]), layer="all", device="cpu")
    assert (model.rate_hz, model.window_samples, model.dim) == (rate_hz, window_samples, 3 * 16)
    samples = noise(model)
    found = model.embed_windows(samples)
    network = hf.AutoModel.from_pretrained(folders[name]).eval()
    network = network.encoder if name == "whisper" else network
    extractor = hf.AutoFeatureExtractor.from_pretrained(folders[name])
    with torch.inference_mode():
        for row, one in zip(found, samples, strict=True):
            inputs = extractor(one, sampling_rate=rate_hz, return_tensors="pt")
            states = network(**inputs, output_hidden_states=True).hidden_states
            wanted = np.concatenate([state[0].mean(dim=0).numpy() for state in states])
            np.testing.assert_allclose(row, wanted, atol=1e-5)


def test_a_layer_is_its_part_of_all(folders):
    every = HuggingFace(str(folders["ast"]), layer="all", device="cpu")
    one = HuggingFace(str(folders["ast"]), layer="1", device="cpu")
    last = HuggingFace(str(folders["ast"]), device="cpu")
    assert list(every.representations) == ["layer 0", "layer 1", "layer 2"]
    assert list(last.representations) == ["layer 2"]
    samples = noise(every)
    np.testing.assert_array_equal(
        every.embed_windows(samples)[:, every.representations["layer 1"]], one.embed_windows(samples)
    )
    assert every.hash == one.hash
    assert every.settings != one.settings


def test_pooling(folders):
    found = {}
    for pooling in ("mean", "max", "first"):
        model = HuggingFace(str(folders["ast"]), pooling=pooling, device="cpu")
        found[pooling] = model.embed_windows(noise(model))
    state = model._hidden_states(noise(model))[-1].numpy()
    np.testing.assert_allclose(found["max"], state.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found["first"], state[:, 0], atol=1e-6)
    assert np.all(found["max"] >= found["mean"])


def test_other_weights_have_another_hash(folders, tmp_path):
    model = hf.HubertModel.from_pretrained(folders["hubert"])
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    model.save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert HuggingFace(str(tmp_path)).hash != HuggingFace(str(folders["hubert"])).hash


@pytest.mark.parametrize("layer", ["3", "-1", "first"])
def test_a_layer_that_the_model_does_not_have_is_refused(folders, layer):
    with pytest.raises(ConfigError, match="0 to 2"):
        HuggingFace(str(folders["hubert"]), layer=layer)


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="could not be loaded"):
        open_peer(f"hf:{tmp_path}")


def test_a_model_without_hidden_states_is_one_sentence(folders, tmp_path, monkeypatch):
    codec = hf.EncodecConfig(num_filters=2, hidden_size=4, codebook_size=4, codebook_dim=4, upsampling_ratios=[2, 2])
    hf.EncodecModel(codec).save_pretrained(tmp_path)  # whose pass takes no `output_hidden_states`
    hf.EncodecFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"gives no hidden states .*output_hidden_states"):
        open_peer(f"hf:{tmp_path}", device="cpu")
    monkeypatch.setattr(hf.HubertModel, "forward", lambda *_, **__: BaseModelOutput())
    with pytest.raises(ConfigError, match="gives no hidden states"):
        open_peer(f"hf:{folders['hubert']}", device="cpu")


def test_code_from_a_repository_runs_only_when_the_user_says_so(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = hf.HubertModel.from_pretrained(folders["hubert"])
    model.save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    auto = '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"},'
    (tmp_path / "config.json").write_text(config.replace('"model_type": "hubert",', "").replace("{", auto, 1))
    (tmp_path / "mine.py").write_text(
        "from transformers import HubertConfig, HubertModel\n"
        "class Config(HubertConfig):\n    model_type = 'mine'\n"
        "class Model(HubertModel):\n    config_class = Config\n"
    )
    with pytest.raises(ConfigError, match="--trust-remote-code"):
        HuggingFace(str(tmp_path))
    trusted = HuggingFace(str(tmp_path), trust_remote_code=True, device="cpu")
    known = HuggingFace(str(folders["hubert"]), device="cpu")
    np.testing.assert_array_equal(trusted.embed_windows(noise(known)), known.embed_windows(noise(known)))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'myna-music\[hf\]'"):
        HuggingFace("m-a-p/MERT-v1-95M")
