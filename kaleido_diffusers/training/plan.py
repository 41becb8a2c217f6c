"""What a run will take, counted from its settings before anything is trained."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch._subclasses.fake_tensor import FakeTensorMode

from ..loaders.lora_settings import make_lora_config
from ..models.latents import autoencoder_without_weights, compression
from ..models.transformer_kaleido import (
    KaleidoTransformer3DModel,
    KaleidoTransformerBlock,
    ViewGroups,
    ViewPositions,
)
from .batches import drawn_partition, step_generator
from .building import blank_transformer
from .config import TrainConfig
from .hardware import Card
from .meter import step_operations, step_tokens
from .objective import ViewPartition
from .optimizer import is_matrix


__all__ = ["Plan", "make_plan"]

_DRAWS = 1000  # partitions of views into groups over which operations are averaged
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run takes. Memory is in bytes a card."""

    parameters: int
    """Of the transformer."""
    trained: int
    """Of them, those that the run changes: all, or an adapter's."""
    operations: float
    """Floating-point operations of a step, forward and backward, averaged over the draws of the run."""
    most_operations: int
    """The same of the dearest draw."""
    tokens: float
    """Tokens of a step, averaged likewise."""
    cards: int
    """Processes, one a card."""
    shards: int
    """Cards that the states are split over."""
    scenes: float
    """Scenes that a card has at once."""
    memory: dict[str, float]
    """Bytes a card by what takes them."""
    seconds: float
    """Of a step at the stated share of the peak."""
    steps: int
    """Of the run."""
    mfu: float
    """The share of the peak (model FLOP utilisation) that `seconds` assumes."""
    card: Card
    """What it runs on."""

    @property
    def days(self) -> float:
        """Of the whole run."""
        return self.seconds * self.steps / 86_400

    @property
    def text(self) -> str:
        """The plan in lines for people."""
        layout = f"{self.cards // self.shards} x {self.shards}" if self.shards > 1 else f"{self.cards} x 1"
        total, room = sum(self.memory.values()), self.card.memory
        lines = [
            (
                "parameters",
                f"{self.parameters:,}" + ("" if self.trained == self.parameters else f", {self.trained:,} trained"),
            ),
            (
                "cards",
                f"{self.cards} {self.card.name}, replicate x shard {layout}, {self.scenes:g} scenes a card at once",
            ),
            (
                "a step",
                f"{self.operations:.3g} FLOP (dearest draw {self.most_operations:.3g}), {self.tokens:,.0f} tokens",
            ),
        ]
        lines += [(f"memory: {part}", f"{size / _GIB:.2f} GiB") for part, size in self.memory.items()]
        fits = "" if room is None else f" of {room / _GIB:.0f} GiB" + ("" if total < room else ": TOO MUCH")
        lines += [
            ("memory a card", f"{total / _GIB:.2f} GiB{fits}"),
            ("time", f"{self.seconds:.3g} s a step at {self.mfu:.0%} MFU of {self.card.peak / 1e12:.4g} TFLOP/s"),
            ("the run", f"{self.steps:,} steps, {self.operations * self.steps:.3g} FLOP, {self.days:.3g} days"),
        ]  # fmt: skip
        return "\n".join(f"{name:<32} {value}" for name, value in lines)


def make_plan(config: TrainConfig, card: Card, cards: int, mfu: float = 0.4) -> Plan:
    """
    Counts what a run takes. Nothing is allocated: the model is made without its weights.

    Args:
        config (`TrainConfig`): settings of the run.
        card ([`Card`]): what each process runs on.
        cards (`int`): how many; one process each.
        mfu (`float`, defaults to `0.4`): share of the card's peak that is assumed to be reached.
    """
    shards = config.shard_degree(cards)
    vae = _without_weights(config)
    with torch.device("meta"):
        if config.init_from is not None:
            stored = KaleidoTransformer3DModel.load_config(config.init_from, subfolder="transformer")
            model = KaleidoTransformer3DModel.from_config(stored)
        else:
            model = blank_transformer(config, vae)
        if config.lora.rank:
            model.requires_grad_(False)
            model.add_adapter(make_lora_config(**vars(config.lora)))
    side = config.size // compression(vae)
    partitions = [drawn_partition(config, step_generator(config.seed, step)) for step in range(_DRAWS)]
    operations = [step_operations(model.config, each, config.batch, side, side) for each in partitions]
    tokens = [step_tokens(model.config, each, config.batch, side, side) for each in partitions]
    scenes = config.batch / cards / config.gradient_accumulation_steps
    dearest = partitions[operations.index(max(operations))]
    memory = _states(model, config, shards) | _activations(model, config, dearest, scenes, side)
    mean = sum(operations) / _DRAWS
    return Plan(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        operations=mean,
        most_operations=max(operations),
        tokens=sum(tokens) / _DRAWS,
        cards=cards,
        shards=shards,
        scenes=scenes,
        memory=memory,
        seconds=mean / cards / (mfu * card.peak),
        steps=config.steps,
        mfu=mfu,
        card=card,
    )


def _without_weights(config: TrainConfig) -> ModelMixin | None:
    """The autoencoder of a run, from its config alone."""
    where = config.vae
    if where is None and config.init_from is not None and (config.init_from / "vae").is_dir():
        where = config.init_from
    return None if where is None else autoencoder_without_weights(where)


def _states(model: KaleidoTransformer3DModel, config: TrainConfig, shards: int) -> dict[str, float]:
    """Bytes a card of what lives through a step: all in float32, split evenly over the shards."""
    named = list(model.named_parameters())
    trained = [(name, p) for name, p in named if p.requires_grad]
    count = sum(p.numel() for _, p in trained)
    matrices = sum(p.numel() for name, p in trained if is_matrix(name, p)) if config.optimizer == "muon" else 0
    states = {
        "weights": 4 * sum(p.numel() for _, p in named),
        "gradients": 4 * count,
        "optimizer": 4 * matrices + 8 * (count - matrices),
        "average": 4 * count,
    }
    split = {name: size / shards for name, size in states.items()}
    if shards > 1:  # two blocks are whole at a time: that which computes, and the next, on its way
        block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
        split["blocks that are whole"] = 2 * block * _width(config)
    return split


def _activations(
    model: KaleidoTransformer3DModel, config: TrainConfig, partition: ViewPartition, scenes: float, side: int
) -> dict[str, float]:
    """Bytes a card of what the backward pass waits for, for the dearest draw. Attention keeps no scores."""
    shown = partition.order[partition.num_references :] if partition.drop_references else partition.order
    tokens = (side // model.config.patch_size) ** 2
    dim = model.config.num_attention_heads * model.config.attention_head_dim
    memory = () if partition.drop_references else tuple(map(len, partition.references))
    groups = ViewGroups(memory, tuple(map(len, partition.targets)))
    block, layers = _saved_by_a_block(model, config, len(shown), tokens, groups), model.config.num_layers
    if config.gradient_checkpointing:
        inputs = len(shown) * tokens * dim * _width(config)
        return {"inputs of blocks": scenes * layers * inputs, "one block's activations": scenes * block}
    return {"activations": scenes * layers * block}


def _saved_by_a_block(
    model: KaleidoTransformer3DModel, config: TrainConfig, views: int, tokens: int, groups: ViewGroups
) -> int:
    """Bytes that a block keeps of one scene for its backward pass: run without numbers, and listened to."""
    architecture = model.config
    dim, dtype = architecture.num_attention_heads * architecture.attention_head_dim, torch.float32
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    half = _width(config) == 2
    with warnings.catch_warnings(), FakeTensorMode():
        block = KaleidoTransformerBlock(
            dim,
            architecture.num_attention_heads,
            architecture.num_key_value_heads,
            architecture.attention_head_dim,
            architecture.ffn_dim,
            "global",
            architecture.norm_eps,
        )
        stream = torch.zeros(1, views, tokens, dim, dtype=torch.bfloat16 if half else dtype, requires_grad=True)
        turn = torch.zeros(1, views, tokens, sum(architecture.rope_axes_dim) // 2, dtype=torch.float32)
        camera = torch.zeros(1, views, 4, 4, dtype=torch.float32)
        products = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
        warnings.simplefilter("ignore")  # of kernels, on what nothing runs on
        with products, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(
                stream,
                torch.zeros(1, views, 6, dim, dtype=torch.float32),
                ViewPositions(camera, camera, turn, turn),
                groups,
            )
    return sum(kept.values())


def _width(config: TrainConfig) -> int:
    """Bytes of a number in products; `auto` is taken for bfloat16, as on every card that is meant."""
    return 4 if config.dtype == "float32" else 2
