"""GGUF files: read into plain weights, or kept quantised, and near what they were made of."""

import pytest
import torch
from conftest import make_model
from diffusers import GGUFQuantizationConfig

from kaleido_diffusers import KaleidoTransformer3DModel, cli
from kaleido_diffusers.loaders.errors import CheckpointError


gguf = pytest.importorskip("gguf")
CONFIG = {"num_layers": 2, "sample_size": 8, "rope_axes_dim": (6, 6, 4)}
INFERRED = {name: value for name, value in CONFIG.items() if name != "num_layers"}
IN_8_BITS = gguf.GGMLQuantizationType.Q8_0


def write_gguf(path, state, fused: bool = False):
    """As the tools of GGUF do: matrices in 8 bits, by blocks of 32 along a row; the rest in float32."""
    if fused:
        state = dict(state)
        for block in range(CONFIG["num_layers"]):
            stem = f"transformer_blocks.{block}.attn."
            parts = [state.pop(f"{stem}{name}.weight") for name in ("to_q", "to_k", "to_v")]
            state[f"model.{stem}qkv.weight"] = torch.cat(parts)
    writer = gguf.GGUFWriter(path, "kaleido")
    for name, value in state.items():
        value = value.numpy()
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(value, IN_8_BITS), raw_dtype=IN_8_BITS)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def predict(model) -> torch.Tensor:
    views = torch.randn(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return model(views, torch.tensor([[0.0, 0.0, 500.0]]), num_targets=1).sample


@pytest.fixture(scope="module")
def model():
    return make_model(**CONFIG, ffn_dim=64)


@pytest.mark.parametrize("fused", [False, True], ids=["ours", "fused queries, keys and values"])
@pytest.mark.parametrize("quantized", [False, True], ids=["dequantised", "quantised"])
def test_8_bits_are_near_what_they_were(fused, quantized, model, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", model.state_dict(), fused)
    options = {"quantization_config": GGUFQuantizationConfig(torch.float32)} if quantized else {}
    there = KaleidoTransformer3DModel.from_single_file(path, **INFERRED, **options)
    weight = there.transformer_blocks[1].attn.to_k.weight
    assert (weight.dtype == torch.uint8) == quantized, "blocks of bytes, or numbers"
    assert there.config.num_key_value_heads == 2 and there.config.ffn_dim == 64
    expected = predict(model)
    error = (predict(there) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.03, "8 bits: a rounding of 1 in 254 of each block's largest"


def test_gguf_converts_and_says_what_is_wrong(model, tmp_path, capsys):
    path = write_gguf(tmp_path / "model.gguf", model.state_dict())
    arguments = ["--sample-size", "8", "--rope-axes-dim", "6", "6", "4", "--output", str(tmp_path / "folder")]
    assert cli.main(["convert", str(path), *arguments]) == 0
    there = KaleidoTransformer3DModel.from_pretrained(tmp_path / "folder", subfolder="transformer")
    plain = KaleidoTransformer3DModel.from_single_file(path, **INFERRED)
    assert torch.equal(predict(there), predict(plain))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="model.gguf cannot be read, it may be truncated or damaged"):
        KaleidoTransformer3DModel.from_single_file(path)


def test_what_a_file_without_a_config_leaves_open_is_said(model, tmp_path, recwarn):
    """`sample_size` decides where tokens are, and no shape tells it."""
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.warns(UserWarning, match=r"model.pt does not say.* sample_size=64.* are assumed.*`config=`"):
        KaleidoTransformer3DModel.from_single_file(tmp_path / "model.pt")
    recwarn.clear()
    model.save_config(tmp_path)
    there = KaleidoTransformer3DModel.from_single_file(tmp_path / "model.pt", config=str(tmp_path))
    assert not [w for w in recwarn if "assumed" in str(w.message)] and there.config.sample_size == 8
