"""Muon (Jordan et al. 2024) for matrices that are whole, and for those that `fully_shard` has split."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


__all__ = ["Muon", "orthogonalized"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, and how often it is applied
_ITERATIONS = 5


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """
    The matrix with its singular values brought to about 1, by five Newton-Schulz iterations in its own precision.

    Args:
        matrix (`torch.Tensor` of shape `[R, C]`): any.
    """
    a, b, c = _COEFFICIENTS
    turned = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    turned = turned / turned.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = turned @ turned.T
        turned = torch.addmm(turned, torch.addmm(gram, gram, gram, beta=b, alpha=c), turned, beta=a)
    return turned.T if matrix.shape[0] > matrix.shape[1] else turned


class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised. On whole matrices it is `torch.optim.Muon`, to the bit.

    Of matrices that are split by rows, each has one owner among the processes that share it: the owner gathers the
    update, orthogonalises it and sends the rows back. So the work is divided, and everybody keeps to its own rows.

    Args:
        params (`Iterable[torch.nn.Parameter]`): matrices.
        lr (`float`, defaults to `0.02`): learning rate; it does not depend on the scale of the gradients.
        weight_decay (`float`, defaults to `0.0`): decoupled.
        momentum (`float`, defaults to `0.95`): Nesterov's.
        dtype (`torch.dtype`, defaults to `torch.bfloat16`): in which updates are sent and orthogonalised.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in torch. `closure` computes the loss once more."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            # Matrices of one size beside each other: owners of a round have equally much to do
            matrices.sort(key=lambda matrix: matrix.numel())
            while matrices:
                count = _owners(matrices[0])
                some, matrices = matrices[:count], matrices[count:]
                updates = [self._update(matrix, group["momentum"]) for matrix in some]
                for matrix, update in zip(some, _orthogonalized_by_owners(some, updates)):
                    own = _own_rows(matrix)
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(update, alpha=-group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1])))
        return loss

    def _update(self, matrix: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """What is to be orthogonalised, own rows of it."""
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        gradient, buffer = _own_rows(matrix.grad), _own_rows(state["momentum_buffer"])
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum).to(self.dtype)


def _own_rows(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # gradients of matrices without are not asked for
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _owners(matrix: torch.Tensor) -> int:
    """Processes that a matrix is split over; in HSDP every copy works for itself."""
    return matrix.device_mesh.size(-1) if isinstance(matrix, DTensor) else 1


def _orthogonalized_by_owners(matrices: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]) -> Iterator:
    """Own rows of the orthogonalised `updates`, of which there are no more than processes: the first process owns the
    first, and so on."""
    if not isinstance(matrices[0], DTensor):
        yield orthogonalized(updates[0])
        return
    mesh = matrices[0].device_mesh
    group, number, size = mesh.get_group(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1), mesh.size(-1)
    sent = [update.numel() for update in updates] + [0] * (size - len(updates))
    mine = matrices[number] if number < len(matrices) else None
    received = [0] * size if mine is None else [rows * mine.shape[1] for rows in _split_rows(mine.shape[0], size)]
    whole = updates[0].new_empty(sum(received))
    dist.all_to_all_single(whole, torch.cat([update.flatten() for update in updates]), received, sent, group=group)
    if mine is not None:
        whole = orthogonalized(whole.view(mine.shape)).flatten()
    back = updates[0].new_empty(sum(sent))
    dist.all_to_all_single(back, whole, sent, received, group=group)
    for update, rows in zip(updates, back.split(sent)):
        yield rows.view_as(update)


def _split_rows(rows: int, size: int) -> list[int]:
    """Rows of each process, as `torch.chunk` deals them out."""
    each = -(-rows // size)
    return [max(0, min(each, rows - number * each)) for number in range(size)]
