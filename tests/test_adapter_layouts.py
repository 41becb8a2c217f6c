"""Adapters as other programs write them: each layout has the effect that ours has, and none is dropped in silence."""

import json
import warnings

import pytest
import torch
from conftest import make_model, make_pipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_lora import FILE, KINDS, SMALL, adapt, differ, generate, loaded, write

from kaleido_diffusers.loaders.lora_settings import make_lora_config


RENAMED = {
    "of PEFT": lambda name: f"base_model.model.{name}",
    "without a prefix": lambda name: name,
    "of ComfyUI": lambda name: f"diffusion_model.{name}",
    "of a wrapper in a wrapper": lambda name: f"module.model.{name}",
    "with the adapter's name": lambda name: f"transformer.{name}".replace(".weight", ".default.weight"),
    "with another name": lambda name: f"base_model.model.{name}".replace(".weight", ".my-room.weight"),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """An adapter whose scale is 1, as layouts without a scale mean it, and its views."""
    folder = write(tmp_path_factory.mktemp("ours"), rank=3)
    weights = {name.removeprefix("transformer."): x for name, x in load_file(folder / FILE).items()}
    views = generate(loaded(make_pipeline(**SMALL), folder))
    assert differ(views, generate(make_pipeline(**SMALL)))
    return weights, views


@pytest.mark.filterwarnings("ignore:.*no adapter_config.json")
@pytest.mark.parametrize("layout", RENAMED)
def test_prefixes_and_names_of_adapters(layout, ours, tmp_path):
    weights, views = ours
    save_file({RENAMED[layout](name): x for name, x in weights.items()}, tmp_path / "lora.safetensors")
    for source in (tmp_path / "lora.safetensors", load_file(tmp_path / "lora.safetensors")):
        assert torch.equal(generate(loaded(make_pipeline(**SMALL), source)), views)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lora_"])
def test_flat_names_with_their_own_scales(prefix, ours, tmp_path):
    """As kohya's scripts write them: `lora_down`, `lora_up`, and an alpha a layer, here half of the rank."""
    weights, views = ours
    flat = {}
    for name, x in weights.items():
        layer, _, end = name.partition(".lora_")
        flat[f"{prefix}{layer.replace('.', '_')}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = x
        flat[f"{prefix}{layer.replace('.', '_')}.alpha"] = torch.tensor(1.5)
    save_file(flat, tmp_path / "kohya.safetensors")
    at_half = generate(loaded(make_pipeline(**SMALL), tmp_path / "kohya.safetensors"))
    torch.testing.assert_close(
        at_half,
        generate(loaded(make_pipeline(**SMALL), weights), attention_kwargs={"scale": 0.5}),
        rtol=1e-4,
        atol=1e-4,
    )
    assert differ(at_half, views), "rank 3, alpha 1.5: half as strong"


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_peft(kind, tmp_path):
    """`PeftModel.save_pretrained`: the scale, DoRA and rsLoRA are in its `adapter_config.json`."""
    config = make_lora_config(**{"rank": 2, **KINDS[kind]})
    model = PeftModel(make_model(**SMALL), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif "magnitude" in name:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
    model.save_pretrained(tmp_path)
    pipe = make_pipeline(**SMALL)
    before, pipe.transformer = generate(pipe), model.base_model.model
    expected = generate(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        views = generate(loaded(make_pipeline(**SMALL), tmp_path))
    torch.testing.assert_close(views, expected, rtol=1e-5, atol=1e-5)
    assert differ(views, before)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no adapter_config.json beside it: its scale \(alpha / rank\) is taken for"):
        loaded(make_pipeline(**SMALL), tmp_path)


def test_what_fits_no_layer_is_an_error(ours, tmp_path):
    weights, _ = ours
    pipe = make_pipeline(**SMALL)
    strange = {f"unet.down_blocks.0.{name}": x for name, x in weights.items()}
    with pytest.raises(ValueError, match="no weight of .* belongs to a layer of the transformer.*unet.down_blocks.0"):
        pipe.load_lora_weights(strange)
    save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(ValueError, match="strange.safetensors belongs to a layer"):
        pipe.load_lora_weights(tmp_path / "strange.safetensors")
    with pytest.raises(ValueError, match="Nothing was loaded: no name of the weights begins with 'transformer'"):
        pipe.transformer.load_lora_adapter({f"unet.{name}": x for name, x in weights.items()})
    assert not pipe.get_list_adapters()
    some = {f"transformer.{name}": x for name, x in weights.items()}
    some |= {name.replace("transformer_blocks.0", "transformer_blocks.9"): x for name, x in some.items()}
    with pytest.warns(UserWarning, match=r"transformer_blocks.9.*and \d+ more belong to no layer"):
        pipe.load_lora_weights(some)


@pytest.mark.parametrize("place", ["/no/such/adapter", "./adapter", "runs/my/adapter", "adapter.safetensors"])
def test_a_place_where_nothing_is_says_so(place):
    with pytest.raises(OSError, match=f"{place}: .*no .*folder or file"):
        make_pipeline(**SMALL).load_lora_weights(place)


def test_names_that_might_be_of_the_hub_are_named(tmp_path):
    with pytest.raises(OSError, match="runs/adapter: no folder or file here, nor an adapter that the Hub gives"):
        make_pipeline(**SMALL).load_lora_weights("runs/adapter")


def test_ours_has_a_config_of_peft_that_says_the_same(tmp_path):
    """Our folders hold both; a scale of 2 counts once."""
    folder = write(tmp_path, rank=2, alpha=4.0)
    assert json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] == 4.0
    weights = {key.replace("transformer.", "base_model.model.", 1): x for key, x in load_file(folder / FILE).items()}
    expected = generate(loaded(make_pipeline(**SMALL), folder))
    save_file(weights, folder / FILE)
    assert torch.equal(generate(loaded(make_pipeline(**SMALL), folder)), expected)


def test_adapters_in_use_do_not_hide_the_layers(ours):
    weights, views = ours
    pipe = make_pipeline(**SMALL)
    pipe.transformer = adapt(pipe.transformer, name="other", seed=5)
    pipe.load_lora_weights(weights, adapter_name="mine")
    pipe.set_adapters("mine")
    assert torch.equal(generate(pipe), views)
