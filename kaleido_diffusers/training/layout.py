"""How a run lies over processes: each holds the whole model, or a shard of it (torch's `fully_shard`)."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models.transformer_kaleido import KaleidoTransformer3DModel
from .config import TrainConfig


__all__ = ["Layout"]


class Layout:
    """
    What differs between whole and sharded models, in one place. A sharded model's parameters, gradients, optimizer
    states and average are `DTensor`s: each process has its rows of every tensor.

    Args:
        accelerator (`Accelerator`): of the run; knows the processes.
        config (`TrainConfig`): its degrees say how many copies and shards there are.
        dtype (`torch.dtype`): of matrix products. Shards are float32 and are gathered in this.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig, dtype: torch.dtype):
        self.accelerator, self.config, self.dtype = accelerator, config, dtype
        processes = accelerator.num_processes
        shards = config.shard_degree(processes)
        self.mesh = None
        if shards > 1:
            # A shape with copies only where there are some: their gradients are summed in a second step
            shape, names = ((processes // shards, shards), ("replicate", "shard"))
            kind = accelerator.device.type
            if processes == shards:
                self.mesh = init_device_mesh(kind, shape[1:], mesh_dim_names=names[1:])
            else:
                self.mesh = init_device_mesh(kind, shape, mesh_dim_names=names)

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold shards."""
        return self.mesh is not None

    @property
    def holds_whole(self) -> bool:
        """Whether this process reads and writes whole tensors: of a sharded model, the main one does."""
        return self.mesh is None or self.accelerator.is_main_process

    def place(self, transformer: KaleidoTransformer3DModel, blank: KaleidoTransformer3DModel) -> torch.nn.Module:
        """
        The model to train: wrapped for its copies, or sharded block by block, then the rest.

        Args:
            transformer ([`KaleidoTransformer3DModel`]): the whole model; of the main process alone, if sharded.
            blank ([`KaleidoTransformer3DModel`]): the same on the meta device, which becomes the shards. Not read
                where nothing is sharded.
        """
        if self.mesh is None:
            return self.accelerator.prepare(transformer)
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # that what it returns must not be changed in place
        weights = dict(transformer.named_parameters())
        # Inputs are left alone: poses and timesteps would lose their digits. The rest of the model, the embedding of
        # timesteps and the ends, is small and stays float32, as in a model that is loaded in 16 bits
        exact = MixedPrecisionPolicy(cast_forward_inputs=False)
        half = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
        for block in blank.transformer_blocks:
            policy = exact if self.dtype == torch.float32 else half
            fully_shard(
                block, mesh=self.mesh, mp_policy=policy, reshard_after_forward=self.config.reshard_after_forward
            )
        fully_shard(blank, mesh=self.mesh, mp_policy=exact)
        blank.to_empty(device=self.accelerator.device)
        for name, parameter in blank.named_parameters():
            self.fill(parameter, weights.get(name))
        return blank

    @torch.no_grad()
    def fill(self, target: torch.Tensor, whole: torch.Tensor | None) -> None:
        """
        Writes a whole tensor into one that may be sharded; all processes take part.

        Args:
            target (`torch.Tensor`): changed in place.
            whole (`torch.Tensor`, *optional*): what it becomes. Only the main process needs to have it, if sharded.
        """
        if self.mesh is None:
            target.copy_(whole)
            return
        device = self.accelerator.device
        if not self.accelerator.is_main_process:
            whole = torch.empty(target.shape, dtype=target.dtype)
        if isinstance(target, DTensor):
            whole = whole.detach().to(device, target.dtype)
            target.to_local().copy_(distribute_tensor(whole, target.device_mesh, target.placements).to_local())
        else:
            whole = whole.to(device)
            torch.distributed.broadcast(whole, 0)
            target.copy_(whole)

    def gather(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Whole tensors, on the main process in the system's memory, if sharded, and nothing on others; the tensors
        themselves if not. All processes take part.

        Args:
            named (`Mapping[str, torch.Tensor]`): by name.
        """
        if self.mesh is None:
            return {name: tensor.detach() for name, tensor in named.items()}
        gathered = {}
        for name, tensor in named.items():  # one after the other: the card need not hold all
            whole = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
            if self.accelerator.is_main_process:
                gathered[name] = whole.cpu()
        return gathered

    @contextmanager
    def part_of_step(self, model: torch.nn.Module, last: bool) -> Iterator[None]:
        """
        Around forward and backward pass of one part of a step.

        Args:
            model (`torch.nn.Module`): as it was placed.
            last (`bool`): whether gradients are complete with it. Before that whole copies do not exchange them, and
                shards sum them up among themselves alone: nobody keeps gradients of the whole model.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(last)
        waits = self.accelerator.no_sync(model) if self.mesh is None and not last else nullcontext()
        with waits:
            yield

    def clip(self, parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
        """
        Clips gradients to `max_grad_norm`, and returns the norm they had.

        Args:
            parameters (`Sequence[torch.nn.Parameter]`): that are trained.
        """
        if self.mesh is None:
            return self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    @contextmanager
    def averaged(
        self, model: torch.nn.Module, trained: Sequence[torch.Tensor], average: Sequence[torch.Tensor]
    ) -> Iterator[None]:
        """
        The model has its averaged weights for a while.

        Args:
            model (`torch.nn.Module`): as it was placed.
            trained (`Sequence[torch.Tensor]`): its parameters that are trained.
            average (`Sequence[torch.Tensor]`): what they change places with.
        """
        _exchange(trained, average)
        try:
            yield
        finally:
            if isinstance(model, FSDPModule):
                model.reshard()  # a forward pass alone leaves the root whole
            _exchange(trained, average)


@torch.no_grad()
def _exchange(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> None:
    """In place, a tensor at a time."""
    for one, other in zip(left, right, strict=True):
        a, b = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in (one, other))
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)
