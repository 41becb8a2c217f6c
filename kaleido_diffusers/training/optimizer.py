"""Optimizers of the trainer."""

import torch


__all__ = ["make_optimizers"]


def make_optimizers(
    model: torch.nn.Module,
    matrix_lr: float = 0.02,
    other_lr: float = 2e-3,
    weight_decay: float = 0.0,
    kind: str = "muon",
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
    """
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and "transformer_blocks" in name and name.endswith("weight")
            (matrices if is_matrix else others).append(parameter)
    adamw = [{"params": others, "weight_decay": 0.0}]
    if kind == "adamw":
        adamw.append({"params": matrices, "weight_decay": weight_decay})
        return [torch.optim.AdamW(adamw, lr=other_lr, betas=(0.9, 0.99))]
    if not hasattr(torch.optim, "Muon"):
        raise ImportError(f"Muon needs torch>=2.9, this is {torch.__version__}: update it, or take AdamW.")
    muon = torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay)
    return [muon, torch.optim.AdamW(adamw, lr=other_lr, betas=(0.9, 0.99))]
