"""Warm starts: what is taken from a donor computes what it computed there, to the last block."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model, random_lenses, random_poses, randomize
from diffusers import AutoencoderKL, FluxTransformer2DModel, Lumina2Transformer2DModel, ZImageTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb

from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline
from kaleido_diffusers.models.transformer_kaleido import ViewGroups, ViewPositions, _patchify
from kaleido_diffusers.training.warm_start import STAGES, load_donor, warm_start


ROWS = COLUMNS = 4
AXES, THETAS = (8, 4, 4), {"lumina2": 10_000.0, "z-image": 256.0}


def make_lumina2(**changes) -> Lumina2Transformer2DModel:
    config = dict(sample_size=8, in_channels=4, hidden_size=64, num_layers=2, num_refiner_layers=1)
    config |= dict(num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=AXES, axes_lens=(30, 32, 32))
    return randomize(Lumina2Transformer2DModel(**{**config, "cap_feat_dim": 24, **changes})).eval()


def make_z_image(**changes) -> ZImageTransformer2DModel:
    config = dict(in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=24)
    config |= dict(axes_dims=list(AXES), axes_lens=[64, 32, 32])
    return randomize(ZImageTransformer2DModel(**{**config, **changes})).eval()


DONORS = {"lumina2": make_lumina2, "z-image": make_z_image}


@pytest.fixture(scope="module", params=DONORS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def donor(kind):
    return DONORS[kind]()


@pytest.fixture(scope="module")
def started(donor):
    return warm_start(donor, sample_size=8)


def blocks_of(donor) -> list[torch.nn.Module]:
    return [block for stage in STAGES for block in getattr(donor, stage)]


def modulation_layer(block) -> torch.nn.Linear:
    return block.norm1.linear if hasattr(block, "norm1") else block.adaLN_modulation[0]


def run_block(block, tokens: torch.Tensor, place: torch.Tensor, embedded: torch.Tensor | None) -> torch.Tensor:
    """A donor's block on tokens `[B, L, C]` at places `[L, 3]`: rotary angles as its model computes them."""
    if hasattr(block, "attention"):
        turns = make_z_image().rope_embedder(place)[None].expand(len(tokens), -1, -1)
    else:
        turns = make_lumina2().rope_embedder._get_freqs_cis(place[None]).expand(len(tokens), -1, -1)
    return block(tokens, None, turns, embedded)


def gates_one(block) -> None:
    """Scales zero, gates one, whatever the timestep: tanh(20) is 1 in float32."""
    layer = modulation_layer(block)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.0, 20.0, 0.0, 20.0]).repeat_interleave(len(layer.bias) // 4))


def at_zero(model: KaleidoTransformer3DModel, batch: int) -> ViewPositions:
    """Position zero, identity cameras."""
    turns = sum(model.config.rope_axes_dim) // 2
    eye = torch.eye(4).expand(batch, 1, 4, 4)
    return ViewPositions(eye, eye, torch.ones(1, 1, 1, turns), torch.zeros(1, 1, 1, turns))


def run_ours(model, tokens: torch.Tensor, modulations: list[torch.Tensor]) -> torch.Tensor:
    hidden, groups = tokens.unsqueeze(1), ViewGroups((), (1,))
    for block, modulation in zip(model.transformer_blocks, modulations):
        table = block.scale_shift_table
        hidden = block(hidden, modulation - table, at_zero(model, len(tokens)), groups)
    return hidden.squeeze(1)


ZERO = torch.zeros(ROWS * COLUMNS, 3, dtype=torch.int32)


# What the blocks compute


@torch.no_grad()
def test_blocks_compute_what_they_did(kind, started):
    """At position zero, with identity cameras and gates one."""
    donor = DONORS[kind]()
    tokens = torch.randn(2, ROWS * COLUMNS, 64, generator=torch.Generator().manual_seed(1))
    expected = tokens
    for block in blocks_of(donor):
        gates_one(block)
        expected = run_block(block, expected, ZERO, torch.zeros(2, modulation_layer(block).in_features))
    ones = torch.tensor([0.0, 0.0, 1.0]).repeat(2)[:, None].expand(2, 1, 6, 64)
    model = started.transformer
    actual = run_ours(model, tokens, [ones] * len(model.transformer_blocks))
    scale = (expected - tokens).abs().mean()
    assert scale > 0.5, "the blocks do something"
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    # Other weights, wrongly ordered blocks and exchanged norms are seen
    for other in (make_model(**{**model.config, "patch_size": 2}), swapped(model), exchanged(model)):
        assert (run_ours(other, tokens, [ones] * 3) - expected).abs().mean() > 0.1 * scale


def swapped(model) -> KaleidoTransformer3DModel:
    return with_state(model, lambda name: name.replace("transformer_blocks.0", "transformer_blocks.1"))


def exchanged(model) -> KaleidoTransformer3DModel:
    return with_state(model, lambda name: name.replace("gate_proj", "up_proj"))


def with_state(model, taken_from) -> KaleidoTransformer3DModel:
    other, state = KaleidoTransformer3DModel.from_config(model.config), model.state_dict()
    other.load_state_dict({name: state[taken_from(name)] for name in state})
    return other


@torch.no_grad()
def test_blocks_follow_the_donors_modulation(kind, donor, started):
    """With the donor's own scales and gates of a timestep."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, ROWS * COLUMNS, 64, generator=generator)
    embedded = torch.randn(2, modulation_layer(donor.layers[0]).in_features, generator=generator)
    expected, modulations = tokens, []
    for block in blocks_of(donor):
        expected = run_block(block, expected, ZERO, embedded)
        projected = modulation_layer(block)(embedded if kind == "z-image" else F.silu(embedded))
        scale_attn, gate_attn, scale_ff, gate_ff = projected.chunk(4, dim=-1)
        none = torch.zeros_like(scale_attn)
        modulation = [none, scale_attn, gate_attn.tanh(), none, scale_ff, gate_ff.tanh()]
        modulations.append(torch.stack(modulation, dim=1)[:, None])
    actual = run_ours(started.transformer, tokens, modulations)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    without = run_ours(
        started.transformer, tokens, [x.clone().index_fill_(2, torch.tensor([1]), 0) for x in modulations]
    )
    assert (without - expected).abs().mean() > 0.01


def scores_of_donor(kind: str, block, tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    attention = block.attention if kind == "z-image" else block.attn
    query, key = (
        norm(layer(tokens).unflatten(-1, (-1, 16)))
        for norm, layer in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
    )
    if kind == "z-image":
        turns = make_z_image().rope_embedder(place)[None]
    else:
        turns = make_lumina2().rope_embedder._get_freqs_cis(place[None])
    query, key = (apply_rotary_emb(x, turns, use_real=False) for x in (query, key))
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    return torch.einsum("bqhd,bkhd->bhqk", query, key)


def scores_of_ours(model, index: int, tokens: torch.Tensor) -> torch.Tensor:
    timestep = torch.zeros(len(tokens), 1)
    positions = model._positions(None, None, None, ROWS, COLUMNS, timestep)["global"]
    attn = model.transformer_blocks[index].attn
    query, key, _ = attn.project(tokens.unsqueeze(1))
    query, key = positions.encode_query(attn.norm_q(query)), positions.encode_key(attn.norm_k(key))
    key = key.repeat_interleave(query.shape[3] // key.shape[3], dim=3)
    return torch.einsum("bqhd,bkhd->bhqk", query.squeeze(1), key.squeeze(1))


@torch.no_grad()
def test_a_still_image_is_looked_at_as_by_the_donor(kind, donor, started):
    tokens = torch.randn(2, ROWS * COLUMNS, 64, generator=torch.Generator().manual_seed(3))
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    place = torch.stack([torch.full((ROWS * COLUMNS,), 5), row.flatten(), column.flatten()], dim=-1).int()
    for index, block in enumerate(blocks_of(donor)):
        expected = scores_of_donor(kind, block, tokens, place)
        torch.testing.assert_close(scores_of_ours(started.transformer, index, tokens), expected, atol=1e-5, rtol=1e-5)
        turned = scores_of_donor(kind, block, tokens, place[:, [0, 2, 1]])
        assert (turned - expected).abs().mean() > 0.1, "rows are no columns"


@torch.no_grad()
def test_fewer_turns_are_the_fastest_of_the_donor(kind):
    donor = DONORS[kind](**{"lumina2": {"axes_dim_rope": (4, 8, 4)}, "z-image": {"axes_dims": [4, 8, 4]}}[kind])
    config = warm_start(donor, sample_size=8, rope_axes_dim=(2, 4, 2)).transformer.config
    assert config.rope_axes_dim == (2, 4, 2) and config.rope_theta == pytest.approx(THETAS[kind] ** 0.5)
    rows = [config.rope_theta ** (-2 * i / 4) for i in range(2)]
    assert rows == pytest.approx([THETAS[kind] ** (-2 * i / 8) for i in range(2)])
    for axes, message in (((4, 4, 0), "proportion"), ((8, 16, 0), "proportion"), ((4, 8, 2), "leave 2 to cameras")):
        with pytest.raises(ValueError, match=message):
            warm_start(donor, rope_axes_dim=axes)


@torch.no_grad()
def test_patches_and_output_are_the_donors(donor, started):
    views = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    theirs = (
        views[:, 0].unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    )
    model = started.transformer
    lumina = hasattr(donor, "x_embedder")
    embed = donor.x_embedder if lumina else donor.all_x_embedder["2-1"]
    torch.testing.assert_close(model.patch_embed(_patchify(views, 2))[:, 0], embed(theirs), atol=1e-5, rtol=1e-5)

    # The output layer, where its scale does not change: like theirs, of the other sign
    donor = make_lumina2() if lumina else make_z_image()
    scale = donor.norm_out.linear_1 if lumina else donor.all_final_layer["2-1"].adaLN_modulation[1]
    scale.weight.zero_()
    model = warm_start(donor, sample_size=8).transformer
    tokens = torch.randn(2, ROWS * COLUMNS, 64, generator=torch.Generator().manual_seed(5))
    tokens = tokens - tokens.mean(-1, keepdim=True)  # where LayerNorm and RMSNorm agree
    head = donor.norm_out if lumina else donor.all_final_layer["2-1"]
    expected = head(tokens, torch.zeros(2, scale.in_features))
    actual = model.proj_out(model.norm_out(tokens, torch.ones(64), torch.zeros(64)))
    ordered = expected.unflatten(-1, (2, 2, 4)).movedim(-1, -3).flatten(-3)
    torch.testing.assert_close(actual, -ordered, atol=1e-4, rtol=1e-4)


# What is fitted


@torch.no_grad()
def test_modulation_is_fitted(kind):
    """A donor whose blocks share a smooth modulation up to constants is followed; the noise level is the donor's."""
    donor = DONORS[kind]()
    if kind == "z-image":  # smooth in the timestep, as trained ones are: random ones tremble
        donor.t_embedder.mlp[0].weight.unflatten(1, (2, -1))[:, :, :64] = 0
    shared = 0.3 * modulation_layer(donor.layers[0]).weight
    shared.unflatten(0, (4, -1))[1::2] *= 0.1  # gates, where tanh is straight
    for number, block in enumerate(blocks_of(donor)):
        layer = modulation_layer(block)
        layer.weight.copy_(shared)
        layer.bias.copy_(torch.linspace(-0.1, 0.1, len(layer.bias)) * number)
    started = warm_start(donor)
    assert started.explained > 0.98
    sigma = torch.tensor([0.0, 0.333, 0.777])
    if kind == "z-image":
        embedded = donor.t_embedder((1 - sigma) * 1000)
    else:
        embed = donor.time_caption_embed
        embedded = F.silu(embed.timestep_embedder(embed.time_proj(1 - sigma)))
    model = started.transformer
    ours = model.time_embed(1000 * sigma[None])[1][0]
    for block, our_block in zip(blocks_of(donor), model.transformer_blocks):
        scale, gate = modulation_layer(block)(embedded).chunk(4, dim=-1)[:2]
        theirs = torch.stack([scale, gate.tanh()], dim=1)
        fit = (ours + our_block.scale_shift_table)[:, 1:3]
        assert (fit - theirs).abs().mean() < 0.1 * theirs.std()
        assert (fit.flip(0) - theirs).abs().mean() > 2 * (fit - theirs).abs().mean(), "noise is not data"
    assert model.time_embed(1000 * sigma[None])[1][0][:, [0, 3]].abs().max() < 1e-6, "donors do not shift"


def test_every_parameter_has_one_origin(kind, donor, started):
    assert sum(row.parameters for row in started.origins) == started.transformer.num_parameters()
    assert sum(started.share(how) for how in ("reused", "fitted", "new")) == pytest.approx(1)
    state, named = donor.state_dict(), {row.origin for row in started.origins if row.how == "reused"}
    of_blocks = blocks_of(donor)[0].state_dict()
    assert {f"blocks.N.{name}" for name in of_blocks if "linear.bias" not in name and "adaLN" not in name} - named == (
        {"blocks.N.norm1.linear.weight"} if kind == "lumina2" else set()
    )
    assert sum(started.left_behind.values()) < sum(value.numel() for value in state.values())
    assert "context_refiner" in started.left_behind
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in warm_start(donor).transformer.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in donor.state_dict().items()), "the donor is its own"


@torch.no_grad()
def test_a_warm_start_renders_and_trains(kind, started):
    generator = torch.Generator().manual_seed(6)
    views = torch.randn(1, 3, 4, 8, 8, generator=generator)
    arguments = dict(
        poses=random_poses(1, 3, generator=generator).float(),
        intrinsics=random_lenses(1, 3, generator=generator).float(),
        num_targets=1,
    )
    model = warm_start(DONORS[kind](), sample_size=8).transformer
    timestep = torch.tensor([[0.0, 0.0, 500.0]])
    one = model(views, timestep, **arguments).sample
    arguments["poses"][:, 2, 0, 3] += 1
    assert (model(views, timestep, **arguments).sample - one).abs().max() > 1e-4, "cameras are seen"
    with torch.enable_grad():
        model(views, timestep, **arguments).sample.square().mean().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters())


# Folders


def run_script(monkeypatch, *words) -> None:
    script = Path(__file__).parents[1] / "conversion" / "warm_start.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    runpy.run_path(str(script), run_name="__main__")


def make_vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=channels,
    )


def test_the_script_writes_a_pipeline(kind, donor, started, tmp_path, monkeypatch, capsys):
    donor.save_pretrained(tmp_path / "donor" / "transformer")
    make_vae(4).save_pretrained(tmp_path / "donor" / "vae")
    run_script(monkeypatch, tmp_path / "donor", "--output", tmp_path / "new", "--sample-size", "8")
    out = capsys.readouterr().out
    assert (
        f"{started.share('reused'):.1%} reused" in out and "| transformer_blocks.N.attn.to_q.weight | reused |" in out
    )
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "new")
    expected = started.transformer.state_dict()
    assert pipe.transformer.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in pipe.transformer.state_dict().items())
    assert pipe.config.prediction_type == "velocity" and pipe.vae.config.latent_channels == 4
    pipe.set_progress_bar_config(disable=True)
    images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(7))]
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 1
    views = pipe(images, poses, fov=50.0, num_inference_steps=2, output_type="pt").images
    assert views.shape == (1, 3, 16, 16) and views.isfinite().all()
    model = KaleidoTransformer3DModel.from_pretrained(tmp_path / "new" / "transformer")
    assert tuple(model.config.rope_axes_dim) == (4, 4, 4)

    # The transformer's own folder, without an autoencoder
    run_script(monkeypatch, tmp_path / "donor" / "transformer", "--output", tmp_path / "bare", "--dtype", "bfloat16")
    assert "no autoencoder" in capsys.readouterr().out
    bare = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "bare", dtype=torch.bfloat16)
    assert bare.vae is None and bare.transformer.proj_out.weight.dtype == torch.bfloat16


def test_what_is_no_donor_is_refused(donor, tmp_path, monkeypatch):
    def refused(*words) -> str:
        there = set(tmp_path.iterdir())
        with pytest.raises(SystemExit) as ended:
            run_script(monkeypatch, *words)
        assert set(tmp_path.iterdir()) == there
        return ended.value.code

    out = ["--output", tmp_path / "new"]
    assert "holds no model of diffusers" in refused(tmp_path, *out)
    make_model().save_pretrained(tmp_path / "ours")
    assert "holds a KaleidoTransformer3DModel; warm starts are made from Lumina2" in refused(tmp_path / "ours", *out)
    donor.save_pretrained(tmp_path / "donor")
    assert "nothing is written over" in refused(tmp_path / "donor", "--output", tmp_path / "ours")
    make_vae(3).save_pretrained(tmp_path / "vae")
    message = refused(tmp_path / "donor", *out, "--vae", tmp_path / "vae")
    assert message == "warm_start: The autoencoder has 3 channels, the donor sees 4."
    assert "`patch_size` must be" in refused(tmp_path / "donor", *out, "--patch-size", "3")
    assert type(load_donor(tmp_path / "donor")) is type(donor)
    with pytest.raises(
        ValueError, match="must be a Lumina2Transformer2DModel or a ZImageTransformer2DModel, got a Flux"
    ):
        warm_start(FluxTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=16,
                                          num_attention_heads=2, axes_dims_rope=(4, 6, 6)))  # fmt: skip


def test_donors_that_lack_something(kind):
    if kind == "z-image":
        with pytest.raises(ValueError, match="qk_norm=False"):
            warm_start(make_z_image(qk_norm=False))
    donor = DONORS[kind]()
    from peft import LoraConfig

    donor.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ValueError, match=r"to_q.weight \(for transformer_blocks.0.*Unload adapters first"):
        warm_start(donor)
