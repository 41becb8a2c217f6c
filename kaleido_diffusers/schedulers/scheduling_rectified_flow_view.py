# Copyright 2026 The Kaleido for diffusers team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Rectified flow over sequences of views: `x_sigma = (1 - sigma) x_0 + sigma eps`, velocity `v = eps - x_0`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput


__all__ = ["RectifiedFlowViewScheduler", "RectifiedFlowViewSchedulerOutput"]

_MOST = 10**6  # of any setting: far beyond what is of use, and far below what takes all memory


@dataclass
class RectifiedFlowViewSchedulerOutput(BaseOutput):
    """
    Output of [`RectifiedFlowViewScheduler.step`].

    Args:
        prev_sample (`torch.Tensor` of shape `[B, M, ...]`):
            The views at their next, lower sigma.
    """

    prev_sample: torch.Tensor


class RectifiedFlowViewScheduler(SchedulerMixin, ConfigMixin):
    """
    Sampling and training distribution of a rectified flow over view sequences.

    Shares keys with [`FlowMatchEulerDiscreteScheduler`], so `from_config` works both ways. Schedules are the same for
    the same `sigmas`; that of a number of steps ends elsewhere there, and its `base_image_seq_len` belongs to a shift
    that grows linearly.

    Args:
        num_train_timesteps (`int`, defaults to `1000`):
            `timestep = num_train_timesteps * sigma`.
        shift (`float`, defaults to `1.0`):
            Static time shift, `sigma <- shift sigma / (1 + (shift - 1) sigma)`: above 1, more steps at high noise.
        use_dynamic_shifting (`bool`, defaults to `False`):
            Whether the shift grows with the number of tokens denoised together, see
            [`~RectifiedFlowViewScheduler.calculate_mu`].
        base_image_seq_len (`int`, defaults to `256`):
            Tokens at which the dynamic shift equals `shift`.
        solver (`str`, defaults to `"euler"`):
            `"euler"`; `"heun"`: second order, two model calls a step but for the last, which is Euler's; or
            `"multistep"`: second order at one call a step, from the last two predictions of `x_0` (after
            DPM-Solver++(2M), arXiv 2211.01095, with `x_0` linear in sigma, which is finite at pure noise).
        prediction_type (`str`, defaults to `"velocity"`):
            What the model predicts: `"velocity"`, or `"sample"` (`x_0`).
        sigma_min (`float`, defaults to `0.05`):
            Where `x_0` turns into a velocity it is divided by `max(sigma, sigma_min)`, in the loss weight too.
        training_distribution (`str`, defaults to `"logit_normal"`):
            Density of the sigmas drawn for training: `"logit_normal"` or `"uniform"`.
        logit_mean (`float`, defaults to `0.8`):
            Mean of `logit(sigma)`. Above 0 is biased to noise (the paper's SNR sampler); 0 is unbiased.
        logit_std (`float`, defaults to `1.0`):
            Standard deviation of `logit(sigma)`.
    """

    _compatibles = []
    if TYPE_CHECKING:

        @property
        def config(self) -> Any: ...  # the arguments by their names, which diffusers types as a plain `dict`

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_image_seq_len: int = 256,
        solver: Literal["euler", "heun", "multistep"] = "euler",
        prediction_type: Literal["velocity", "sample"] = "velocity",
        sigma_min: float = 0.05,
        training_distribution: Literal["logit_normal", "uniform"] = "logit_normal",
        logit_mean: float = 0.8,
        logit_std: float = 1.0,
    ):
        for name, value, choices in (
            ("solver", solver, ("euler", "heun", "multistep")),
            ("prediction_type", prediction_type, ("velocity", "sample")),
            ("training_distribution", training_distribution, ("logit_normal", "uniform")),
        ):
            if value not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
        for name, value in (("num_train_timesteps", num_train_timesteps), ("base_image_seq_len", base_image_seq_len)):
            if not isinstance(value, int) or not 1 <= value <= _MOST:
                raise ValueError(f"`{name}` must be a whole number from 1 to {_MOST}, got {value!r}.")
        if not 0 < sigma_min < 1:
            raise ValueError(f"`sigma_min` must lie between 0 and 1, got {sigma_min}.")
        for name, value in (("shift", shift), ("logit_std", logit_std)):
            if not 0 < value <= _MOST:
                raise ValueError(f"`{name}` must be positive and at most {_MOST}, got {value}.")
        if not abs(logit_mean) <= _MOST:
            raise ValueError(f"`logit_mean` must lie between -{_MOST} and {_MOST}, got {logit_mean}.")
        self.init_noise_sigma = 1.0
        self.num_inference_steps = None
        self.sigmas = self._shifted(torch.linspace(1, 0, num_train_timesteps + 1, dtype=torch.float32), None)
        self.timesteps = self.sigmas[:-1] * num_train_timesteps
        self._reset()

    @property
    def order(self) -> int:
        """Model calls a step: 2 for Heun, 1 for the others."""
        return 2 if self.config.solver == "heun" else 1

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the next call of [`~RectifiedFlowViewScheduler.step`]."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first timestep, when sampling does not start at pure noise."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index of the first timestep, to be called before the first step.

        Args:
            begin_index (`int`, defaults to `0`):
                Index into `timesteps`; with Heun an even one, where a step begins.
        """
        if begin_index % self.order:
            raise ValueError(f"With Heun, `begin_index` must be even, where a step begins, got {begin_index}.")
        self._begin_index = begin_index

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # Sampling

    def calculate_mu(self, num_tokens: int) -> float:
        """
        The dynamic shift `mu = log(shift * sqrt(num_tokens / base_image_seq_len))` of
        [`~RectifiedFlowViewScheduler.set_timesteps`]: noise must be stronger to hide what many tokens share (Stable
        Diffusion 3, arXiv 2403.03206, eq. 23).

        Args:
            num_tokens (`int`):
                Tokens denoised together: tokens of a view times targets of a group.
        """
        return math.log(self.config.shift) + 0.5 * math.log(num_tokens / self.config.base_image_seq_len)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """
        Sets the schedule: `sigmas` falls to 0 and is one longer than `timesteps`. With Heun, inner timesteps stand
        twice.

        Args:
            num_inference_steps (`int`, *optional*):
                Steps from noise to data. Not needed with `sigmas` or `timesteps`.
            device (`str` or `torch.device`, *optional*):
                Device of `timesteps`.
            sigmas (`Sequence[float]`, *optional*):
                Falling sigmas in (0, 1], before the time shift; a 0 at the end may be left out.
            mu (`float`, *optional*):
                Logarithm of the time shift. Required with `use_dynamic_shifting`.
            timesteps (`Sequence[float]`, *optional*):
                Falling timesteps instead of `sigmas`; these are used as they are, without a shift.
        """
        if sum(argument is not None for argument in (sigmas, timesteps)) > 1:
            raise ValueError("Only one of `sigmas` and `timesteps` can be given.")
        if self.config.use_dynamic_shifting and mu is None and timesteps is None:
            raise ValueError("`mu` is required with `use_dynamic_shifting`, see `calculate_mu`.")
        if timesteps is not None:
            schedule = self._checked([t / self.config.num_train_timesteps for t in timesteps], "timesteps")
        elif sigmas is not None:
            schedule = self._shifted(self._checked(sigmas, "sigmas"), mu)
        else:
            if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
                raise ValueError(f"`num_inference_steps` must be a positive integer, got {num_inference_steps!r}.")
            schedule = self._shifted(torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float32), mu)
        if num_inference_steps is not None and len(schedule) != num_inference_steps + 1:
            raise ValueError(f"The schedule has {len(schedule) - 1} steps, but {num_inference_steps} were asked for.")
        self.num_inference_steps = len(schedule) - 1
        if self.config.solver == "heun":
            schedule = torch.cat([schedule[:1], schedule[1:-1].repeat_interleave(2), schedule[-1:]])
        self.sigmas = schedule
        self.timesteps = (schedule[:-1] * self.config.num_train_timesteps).to(device)
        self._reset()

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """The index of `timestep` in `timesteps` (of its last occurrence, where a step of Heun begins).

        Args:
            timestep (`float` or `torch.Tensor`):
                One of `timesteps`.
        """
        indices = (
            self.timesteps == torch.as_tensor(timestep, dtype=torch.float32, device=self.timesteps.device)
        ).nonzero()
        if not len(indices):
            raise ValueError(f"`timestep` must be one of `scheduler.timesteps`, got {timestep}.")
        return int(indices[-1])

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> RectifiedFlowViewSchedulerOutput | tuple[torch.Tensor]:
        """
        Moves views to the next sigma of the schedule. Views at sigma 0 are returned as they came, to the bit.

        Args:
            model_output (`torch.Tensor` of shape `[B, M, ...]`):
                Prediction of the model, as `prediction_type` has it.
            timestep (`float` or `torch.Tensor`):
                One of `timesteps` for all views, or a timestep for each, `[B, M]`: each view then moves to the next
                sigma of the schedule below its own. (With Heun, every second call corrects the call before it; with
                the multistep solver, every call builds on the one before it: of the same views.)
            sample (`torch.Tensor` of shape `[B, M, ...]`):
                The noisy views.
            generator (`torch.Generator`, *optional*):
                Not read: the flow is deterministic. Pipelines pass one to every scheduler.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`RectifiedFlowViewSchedulerOutput`] instead of a tuple.

        Returns:
            [`RectifiedFlowViewSchedulerOutput`] or `tuple`: the views at their next sigma, in the dtype of `sample`;
            the arithmetic is done in at least float32.
        """
        if isinstance(timestep, int) or (torch.is_tensor(timestep) and not timestep.is_floating_point()):
            raise ValueError("`timestep` must be one of `scheduler.timesteps` (a float), not an integer index.")
        dtype = torch.promote_types(sample.dtype, torch.float32)
        x, output = sample.to(dtype), model_output.to(dtype)
        sigma, sigma_next = (s.to(x) for s in self._interval(timestep, sample))

        if self.config.solver == "multistep":
            moved, settled = self._multistep(output, x, sigma, sigma_next), sigma == 0
        elif self._predictor is None:  # Euler, or the predictor of Heun
            velocity = self.to_velocity(output, x, sigma)
            moved = x + (sigma_next - sigma) * velocity
            if self.config.prediction_type == "sample":  # a clamped velocity falls short of x_0: land on it
                moved = torch.where(sigma_next == 0, output, moved)
            if self.config.solver == "heun" and bool((sigma_next > 0).any()):
                self._predictor = (x, velocity, sigma, sigma_next)
            settled = sigma == 0
        else:  # the corrector: the mean of the slopes at both ends of the predictor's interval
            start, velocity, sigma_start, sigma_end = self._predictor
            self._predictor = None
            if (sigma - sigma_end).abs().max() > 1e-6:
                raise ValueError("The second call of a Heun step must come at the timestep that the first one led to.")
            velocity = (velocity + self.to_velocity(output, x, sigma_end)) / 2
            moved = start + (sigma_end - sigma_start) * velocity
            settled = sigma_end == 0
        prev_sample = torch.where(settled, sample, moved.to(sample.dtype))

        if self._step_index is not None:
            self._step_index += 1
        return RectifiedFlowViewSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Returns `sample`: the flow needs no scaling.

        Args:
            sample (`torch.Tensor`):
                Input of the model.
            timestep (`float` or `torch.Tensor`, *optional*):
                Not read; there for interchangeability.
        """
        return sample

    # Training

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Noises clean views: `(1 - sigma) sample + sigma noise`.

        Args:
            sample (`torch.Tensor` of shape `[B, M, ...]`):
                Clean views.
            timestep (`float` or `torch.Tensor` of shape `[]`, `[B]` or `[B, M]`):
                1000 sigma, for all views or each.
            noise (`torch.Tensor` of shape `[B, M, ...]`):
                Standard normal noise.
        """
        timestep = torch.as_tensor(timestep, dtype=torch.promote_types(sample.dtype, torch.float32))
        sigma = _spread(timestep.to(sample.device) / self.config.num_train_timesteps, sample)
        return torch.lerp(sample.to(sigma.dtype), noise.to(sigma.dtype), sigma).to(sample.dtype)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """[`~RectifiedFlowViewScheduler.scale_noise`] with the argument order of other schedulers.

        Args:
            original_samples (`torch.Tensor` of shape `[B, M, ...]`):
                Clean views.
            noise (`torch.Tensor` of shape `[B, M, ...]`):
                Standard normal noise.
            timesteps (`torch.Tensor` of shape `[]`, `[B]` or `[B, M]`):
                1000 sigma.
        """
        return self.scale_noise(original_samples, timesteps, noise)

    def sample_sigmas(
        self,
        batch_size: int,
        num_groups: int,
        generator: torch.Generator | None = None,
        device: str | torch.device | None = None,
    ) -> torch.Tensor:
        """
        Draws training sigmas in (0, 1), `[batch_size, num_groups]`: one for each target group.

        Args:
            batch_size (`int`):
                Rows of the batch.
            num_groups (`int`):
                Target groups, which never see each other.
            generator (`torch.Generator`, *optional*):
                Source of randomness.
            device (`str` or `torch.device`, *optional*):
                Device of the sigmas.
        """
        device_of_noise = device if generator is None else generator.device
        source: dict[str, Any] = dict(generator=generator, device=device_of_noise, dtype=torch.float32)
        if self.config.training_distribution == "uniform":
            return (1 - torch.rand(batch_size, num_groups, **source)).to(device)
        logits = torch.randn(batch_size, num_groups, **source).to(device)
        return torch.sigmoid(self.config.logit_mean + self.config.logit_std * logits)

    def to_velocity(self, model_output: torch.Tensor, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """
        The velocity that a prediction stands for: the prediction itself, or `(sample - x_0) / max(sigma, sigma_min)`.

        Args:
            model_output (`torch.Tensor` of shape `[B, M, ...]`):
                Prediction of the model.
            sample (`torch.Tensor` of shape `[B, M, ...]`):
                The noisy views that it was made from.
            sigma (`torch.Tensor` of shape `[]`, `[B, M]` or `[B, M, 1, ...]`):
                Their noise.
        """
        if self.config.prediction_type == "velocity":
            return model_output
        return (sample - model_output) / _spread(sigma, sample).clamp_min(self.config.sigma_min)

    def to_sample(self, model_output: torch.Tensor, sample: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """
        The clean views that a prediction stands for: the prediction itself, or `sample - sigma * velocity`.

        Args:
            model_output (`torch.Tensor` of shape `[B, M, ...]`):
                Prediction of the model.
            sample (`torch.Tensor` of shape `[B, M, ...]`):
                The noisy views that it was made from.
            sigma (`torch.Tensor` of shape `[]`, `[B, M]` or `[B, M, 1, ...]`):
                Their noise.
        """
        if self.config.prediction_type == "sample":
            return model_output
        return sample - _spread(sigma, sample) * model_output

    def _multistep(
        self, output: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor, sigma_next: torch.Tensor
    ) -> torch.Tensor:
        """Solves `dx/dsigma = (x - x_0) / sigma` for an `x_0` that goes on as it went since the call before. The first
        step is Euler's, the last lands on the predicted `x_0`."""
        clean = self.to_sample(output, x, sigma)
        ratio = sigma_next / sigma.clamp_min(1e-12)
        moved = torch.lerp(clean, x, ratio)
        if self._before is not None:
            clean_before, sigma_before = self._before
            slope = (clean - clean_before) / (sigma - sigma_before).clamp_max(-1e-12)
            curve = moved - slope * (sigma - sigma_next + sigma_next * ratio.clamp_min(1e-12).log())
            moved = torch.where(sigma_next > 0, curve, moved)
        self._before = (clean, sigma)
        return moved

    def _reset(self) -> None:
        self._step_index = self._begin_index = self._predictor = self._before = None

    def _checked(self, values: Sequence[float], name: str) -> torch.Tensor:
        schedule = torch.as_tensor(values, dtype=torch.float32).cpu()
        if schedule.ndim == 1 and len(schedule) and schedule[-1] > 0:
            schedule = torch.cat([schedule, torch.zeros(1, dtype=torch.float32)])
        falling = schedule.ndim == 1 and len(schedule) > 1 and bool((schedule.diff() < 0).all())
        if not falling or not (0 <= schedule[-1] and schedule[0] <= 1):
            raise ValueError(f"`{name}` must fall strictly, within sigma 1 and 0, got {list(values)}.")
        return schedule

    def _shifted(self, sigmas: torch.Tensor, mu: float | None) -> torch.Tensor:
        shift = self.config.shift if mu is None else math.exp(mu)
        return shift * sigmas / (1 + (shift - 1) * sigmas)

    def _interval(self, timestep: float | torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sigma now and next, shaped to broadcast over `sample`."""
        timestep = torch.as_tensor(timestep, dtype=torch.float32)
        if timestep.shape in ((), (1,)):
            if self._step_index is None:
                self._step_index = (
                    self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
                )
            return self.sigmas[self._step_index], self.sigmas[self._step_index + 1]
        sigma = timestep.to(sample.device) / self.config.num_train_timesteps
        below = self.sigmas.to(sigma).expand(*sigma.shape, -1)
        below = torch.where(below < sigma.unsqueeze(-1) - 1e-6, below, torch.zeros_like(below))
        return _spread(sigma, sample), _spread(below.amax(-1), sample)


def _spread(sigma: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """`sigma` with trailing dimensions of 1, as many as `sample` has more."""
    return sigma.reshape(sigma.shape + (1,) * (sample.ndim - sigma.ndim))
