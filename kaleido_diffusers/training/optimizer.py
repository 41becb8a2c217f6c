"""Optimizers of the trainer."""

from collections.abc import Mapping

import torch

from .muon import Muon


__all__ = ["is_matrix", "make_optimizers", "optimizer_states"]


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is one of the matrices of the blocks, which Muon is for.

    Args:
        name (`str`): in the model.
        parameter (`torch.Tensor`): itself.
    """
    return parameter.ndim == 2 and "transformer_blocks" in name and name.endswith("weight")


def make_optimizers(
    model: torch.nn.Module,
    matrix_lr: float = 0.02,
    other_lr: float = 2e-3,
    weight_decay: float = 0.0,
    kind: str = "muon",
    muon_dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """
    Muon for the matrices of the transformer blocks, AdamW for everything else.

    In our trials Muon (Jordan et al. 2024) reached a given loss in a fraction of AdamW's steps; see benchmarks/.

    Args:
        model (`torch.nn.Module`):
            Its parameters that require gradients are optimised.
        matrix_lr (`float`, defaults to `0.02`):
            Learning rate of Muon. It does not depend on the scale of the gradients.
        other_lr (`float`, defaults to `2e-3`):
            Learning rate of AdamW: embeddings, norms, modulation and output.
        weight_decay (`float`, defaults to `0.0`):
            Decoupled weight decay of the matrices.
        kind (`str`, defaults to `"muon"`):
            `"muon"`, or `"adamw"`: AdamW with `other_lr` for everything.
        muon_dtype (`torch.dtype`, defaults to `torch.bfloat16`):
            Precision in which Muon orthogonalises.
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if is_matrix(name, parameter) else others).append(parameter)
    adamw = [{"params": others, "weight_decay": 0.0}]
    if kind == "adamw":
        adamw.append({"params": matrices, "weight_decay": weight_decay})
        return [torch.optim.AdamW(adamw, lr=other_lr, betas=(0.9, 0.99))]
    muon = Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, dtype=muon_dtype)
    return [muon, torch.optim.AdamW(adamw, lr=other_lr, betas=(0.9, 0.99))]


def optimizer_states(
    optimizers: list[torch.optim.Optimizer], names: Mapping[torch.Tensor, str]
) -> dict[str, dict[str, torch.Tensor]]:
    """
    What the optimizers keep of each parameter, by its name; zeros, as before the first step, where they keep nothing
    yet. The tensors are theirs: what is written into them counts.

    Args:
        optimizers (`list[torch.optim.Optimizer]`): of [`make_optimizers`].
        names (`Mapping[torch.Tensor, str]`): of the parameters.
    """
    states = {}
    for optimizer in optimizers:
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            state = optimizer.state[parameter]
            if not state and "betas" in optimizer.defaults:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state.update(step=torch.tensor(0.0, dtype=torch.float32), **moments)
            elif not state:
                state.update(momentum_buffer=torch.zeros_like(parameter))
            states[names[parameter]] = state
    return states
