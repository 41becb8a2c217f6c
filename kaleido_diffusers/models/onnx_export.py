"""The transformer and its autoencoder as ONNX, for programs without torch.

`transformer.onnx` takes views, and a memory that they attend to: references with timestep 0 give a memory (none is a
memory of no views), noisy targets with that memory give their prediction. `transformer_uncached.onnx` takes references
and targets in one pass. Sizes, and numbers of scenes and views, are free. All graphs share one file of weights.
"""

import hashlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from .latents import compression, decode_images, encode_images, latent_channels
from .reference_cache import KaleidoReferenceCache
from .transformer_kaleido import KaleidoTransformer3DModel


__all__ = ["ONNX_WEIGHTS", "export_onnx"]

ONNX_WEIGHTS = "weights.bin"
_PAGE = 4096  # bytes: where a tensor may begin in a file that is mapped into memory
_INLINE = 1024  # bytes: smaller tensors stay in their graph

# Dimensions that are free, by the names of inputs.
_VIEWS = {0: "scenes", 1: "views", 3: "height", 4: "width"}
_ENTRIES = {0: "scenes", 1: "views"}
_TARGETS = {**_VIEWS, 1: "targets"}


class _WithMemory(torch.nn.Module):
    """Views that attend to a memory and to each other: their prediction, and the memory with them in it."""

    def __init__(self, transformer: KaleidoTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        blocks = enumerate(transformer.transformer_blocks)
        self.layers = [index for index, block in blocks if block.attn.kind == "global"]

    def forward(self, views, timestep, poses, intrinsics, times, memory):
        cache = KaleidoReferenceCache.of_layers(memory, self.layers)
        options = {"poses": poses, "intrinsics": intrinsics, "times": times, "cache": cache, "return_dict": False}
        sample = self.transformer(views.to(self.transformer.dtype), timestep, **options)[0]
        cache.num_views = cache.num_views + views.shape[1]
        return sample.float(), cache.layers()


class _InOnePass(torch.nn.Module):
    """References, and targets that attend to them: the targets' prediction."""

    def __init__(self, transformer: KaleidoTransformer3DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, references, targets, timestep, poses, intrinsics, times):
        views = torch.cat([references, targets], dim=1).to(self.transformer.dtype)
        timestep = torch.cat([timestep.new_zeros(references.shape[:2]), timestep], dim=1)
        options = {"num_targets": targets.shape[1], "return_dict": False}
        return self.transformer(views, timestep, poses, intrinsics, times, **options)[0].float()


class _Encoder(torch.nn.Module):
    def __init__(self, vae: ModelMixin):
        super().__init__()
        self.vae = vae

    def forward(self, pixels):
        return encode_images(self.vae, pixels)


class _Decoder(torch.nn.Module):
    def __init__(self, vae: ModelMixin):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return decode_images(self.vae, latents)


def export_onnx(
    folder: str | os.PathLike, transformer: KaleidoTransformer3DModel, vae: ModelMixin | None = None
) -> list[Path]:
    """
    Writes `transformer.onnx`, `transformer_uncached.onnx`, with an autoencoder `vae_encoder.onnx` and
    `vae_decoder.onnx`, and the weights of all in one file.

    Args:
        folder (`str` or `os.PathLike`): where to; it must be there.
        transformer ([`KaleidoTransformer3DModel`]): computes in the precision of its weights; all inputs but the
            memory, and all predictions, are float32.
        vae (`ModelMixin`, *optional*): its image autoencoder.

    Returns:
        `list[Path]`: the graphs. `ImportError` without the packages of the extra `onnx`.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX is written by onnxscript: pip install 'kaleido-diffusers[onnx]'") from error
    graphs = {"transformer": _with_memory(transformer), "transformer_uncached": _in_one_pass(transformer)}
    if vae is not None:
        graphs |= {"vae_encoder": _encoder(vae), "vae_decoder": _decoder(vae)}
    return _write(Path(folder), graphs)


def _with_memory(transformer: KaleidoTransformer3DModel):
    views, poses, intrinsics = _example(transformer, 3)
    module, config = _WithMemory(transformer), transformer.config
    tokens = views.shape[-2] * views.shape[-1] // config.patch_size**2
    shape = (len(module.layers), 2, len(views), 4, tokens, config.num_key_value_heads, config.attention_head_dim)
    inputs = {
        "views": (views, _VIEWS),
        "timestep": (torch.full(views.shape[:2], 500.0, dtype=torch.float32), _ENTRIES),
        "poses": (poses, _ENTRIES),
        "intrinsics": (intrinsics, _ENTRIES),
        "times": (torch.rand(views.shape[:2], dtype=torch.float32), _ENTRIES),
        "memory": (torch.randn(shape, dtype=transformer.dtype), {2: "scenes", 3: "remembered", 4: "tokens"}),
    }
    return _graph(module, inputs, ["sample", "grown_memory"])


def _in_one_pass(transformer: KaleidoTransformer3DModel):
    views, poses, intrinsics = _example(transformer, 7)
    inputs = {
        "references": (views[:, :4], {**_VIEWS, 1: "references"}),
        "targets": (views[:, 4:], _TARGETS),
        "timestep": (torch.full((len(views), 3), 500.0, dtype=torch.float32), {0: "scenes", 1: "targets"}),
        "poses": (poses, _ENTRIES),
        "intrinsics": (intrinsics, _ENTRIES),
        "times": (torch.rand(views.shape[:2], dtype=torch.float32), _ENTRIES),
    }
    return _graph(_InOnePass(transformer), inputs, ["sample"])


def _encoder(vae: ModelMixin):
    side = 8 * compression(vae)
    free = {0: "views", 2: "height", 3: "width"}
    return _graph(
        _Encoder(vae), {"pixels": (torch.rand(2, 3, side, 2 * side, dtype=torch.float32), free)}, ["latents"]
    )


def _decoder(vae: ModelMixin):
    free = {0: "views", 2: "height", 3: "width"}
    return _graph(
        _Decoder(vae),
        {"latents": (torch.randn(2, latent_channels(vae), 8, 16, dtype=torch.float32), free)},
        ["pixels"],
    )


def _example(transformer: KaleidoTransformer3DModel, num_views: int) -> tuple[torch.Tensor, ...]:
    """Two scenes of views with cameras; no two sizes are the same, nor 1, which would be taken for fixed."""
    config = transformer.config
    views = torch.randn(
        2, num_views, config.in_channels, 5 * config.patch_size, 6 * config.patch_size, dtype=torch.float32
    )
    poses, intrinsics = (torch.eye(side, dtype=torch.float32).repeat(2, num_views, 1, 1) for side in (4, 3))
    return views, poses, intrinsics


def _graph(module: torch.nn.Module, inputs: dict[str, tuple[torch.Tensor, dict[int, str]]], outputs: list[str]):
    """The ONNX program of a module. Gradients stay enabled: without them a memory is written in place."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of packages that are not there
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two inputs share a dimension
        return torch.onnx.export(
            module.eval().requires_grad_(False),
            tuple(example for example, _ in inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(free for _, free in inputs.values()),
            dynamo=True,
            verbose=False,
        )


def _write(folder: Path, graphs: dict[str, Any]) -> list[Path]:
    """Writes the graphs, and each of their weights once."""
    import onnx_ir as ir

    places: dict[bytes, tuple[int, int]] = {}  # by digest: where a tensor lies, and its bytes
    files = []
    with open(folder / ONNX_WEIGHTS, "wb") as stream:
        for name, program in graphs.items():
            for value in program.model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _INLINE:
                    continue
                content = tensor.tobytes()
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    stream.write(b"\0" * (-stream.tell() % _PAGE))
                    places[digest] = (stream.tell(), len(content))
                    stream.write(content)
                place = dict(zip(("offset", "length"), places[digest]))
                value.const_value = ir.ExternalTensor(
                    ONNX_WEIGHTS, **place, dtype=tensor.dtype, shape=tensor.shape, name=value.name, base_dir=folder
                )
            files.append(folder / f"{name}.onnx")
            ir.save(program.model, files[-1])
    return files
