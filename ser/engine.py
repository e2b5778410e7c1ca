"""DeepSpeed around one model: initialise, backward, agreed step, gathered weights.

DeepSpeed divides each backward by the accumulation steps and averages over ranks; the loss that comes in is already
scaled by (world x accumulation) / N (see `ser.loss`), so a global step equals one big batch for every layout.

A step with a non-finite loss or gradient on any rank is skipped on all: the wrapped AdamW does nothing in that step,
so weights, moments and step counts stay as they were at every ZeRO stage, while DeepSpeed clears its gradients as
usual.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ser import universal
from ser.compiled import compile_operations
from ser.distributed import World, any_rank, prepare_environment
from ser.recipe import OptimizerConfig, TrainConfig
from ser.writing import Writing
from shards.errors import UserError

BUFFERS = "buffers.safetensors"  # beside DeepSpeed's files: its universal format has parameters only


class SkippableAdamW(torch.optim.AdamW):
    """AdamW whose `step` does nothing while `skip` is set."""

    skip = False

    def step(self, closure: Any = None) -> Any:
        """One update, or nothing."""
        return None if self.skip else super().step(closure)


class Engine:
    """One model in training.

    Args:
        model: All that is trained (the exported model and its projectors), weights loaded, on any device.
        config: How; `slots / world.size` is the accumulation.
        world: This process's place.
        encoder_parameters: Parameters that take `optimizer.encoder_lr`.

    Raises:
        UserError: The world does not divide the slots.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        world: World,
        encoder_parameters: Iterable[nn.Parameter] = (),
    ):
        if config.slots % world.size:
            fit = [w for w in range(1, config.slots + 1) if config.slots % w == 0]
            raise UserError(
                f"{world.size} workers cannot share {config.slots} slots a step",
                hint=f"use one of these: {fit}",
            )
        prepare_environment()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import deepspeed
        deepspeed.utils.logger.setLevel(logging.ERROR)
        # DeepSpeed calls collectives by names that torch has deprecated; a user can do nothing about it.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        self.config, self.world = config, world
        self.accumulation = config.slots // world.size
        self.finite: Any = True  # of the slot at hand
        self.slots_finite: list[Any] = []  # of this rank's slots of the global step, in order
        self.norm: torch.Tensor | None = None
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.register_hook(self._watch)
        self.optimizer = SkippableAdamW(
            _groups(model, config.optimizer, encoder_parameters),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
        )
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that its operations were built
            compile_operations()
            deepspeed.init_distributed(
                dist_backend="nccl" if world.device.type == "cuda" else "gloo",
                auto_mpi_discovery=False,
                verbose=False,
            )
        self.engine, *_ = deepspeed.initialize(
            model=model.to(world.device),
            optimizer=self.optimizer,
            config=deepspeed_config(config, self.accumulation, sum(p.numel() for p in self.trained)),
        )
        if world.size == 1 and clips_itself(config):
            # The mean over one process is the gradient itself; DeepSpeed would copy it there and back.
            self.engine.enable_backward_allreduce = False

    def _watch(self, gradient: torch.Tensor) -> None:
        # A tensor stays on the device: no synchronisation until the step decides.
        self.finite = self.finite & torch.isfinite(gradient.sum())

    @property
    def module(self) -> nn.Module:
        """The wrapped module (forward through `self.engine`)."""
        return self.engine.module  # pyright: ignore[reportReturnType]  # nn.Module.__getattr__ hides its type

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights that compute."""
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of one slot's scaled loss."""
        self.finite = self.finite & torch.isfinite(loss.detach())
        self.engine.backward(loss)

    def micro_step(self, rate: float, last: bool) -> bool:
        """After each backward; on the step's last slot the weights move. Returns False when the step was skipped.

        Args:
            rate: Factor on the base learning rates.
            last: This was the last slot of the global step on this rank.
        """
        self.slots_finite.append(self.finite)
        self.finite = True
        if not last:
            self.engine.step()
            return True
        self.bad_slots = [i for i, finite in enumerate(self.slots_finite) if not bool(finite)]
        self.slots_finite = []
        bad = any_rank(bool(self.bad_slots), self.world)
        self.optimizer.skip = bad
        if clips_itself(self.config):
            self.norm = nn.utils.clip_grad_norm_(self.trained, self.config.clip or float("inf"))
        for group, base in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = base * rate
        self.engine.step()
        self.optimizer.skip = False
        return not bad

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping."""
        norm = self.norm if clips_itself(self.config) else self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def weights(self) -> dict[str, torch.Tensor]:
        """Full fp32 weights and buffers on CPU, gathered over ranks (every rank calls; every rank gets them)."""
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        state: dict[str, torch.Tensor] = {}
        sharded = self.config.zero_stage > 0 or self.config.precision != "fp32"
        for name, parameter in self.module.named_parameters():
            full = safe_get_full_fp32_param(parameter) if sharded and parameter.requires_grad else None
            if full is None:
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.zero_stage == 3):
                    full = parameter.detach().clone()
            state[name] = (
                full.detach().float().cpu().clone() if full.is_floating_point() else full.cpu().clone()
            )
        return state | self.buffers()

    def buffers(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that belong to the model's state, on CPU."""
        kept = self.module.state_dict()
        return {name: b.detach().cpu().clone() for name, b in self.module.named_buffers() if name in kept}

    def save(self, directory: Path, tag: str, background: bool = False) -> Writing:
        """Write DeepSpeed's files and the buffers into `directory/tag` (every rank calls).

        Args:
            directory: Where the checkpoints lie.
            tag: Name of the checkpoint's folder.
            background: Copy the state and return; the copy is written while the training goes on.
        """
        writing = Writing(directory / tag, background)
        self.engine.checkpoint_engine.save = writing.add  # pyright: ignore[reportOptionalMemberAccess]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine.save_checkpoint(str(directory), tag=tag, save_latest=False)
        if self.world.main and self.config.zero_stage > 0:
            save_file(self.buffers(), str(directory / tag / BUFFERS))
        writing.start()
        return writing

    def load(self, directory: Path, tag: str, resharded: bool = False) -> None:
        """Restore weights, moments and counters from files whose hashes the caller has verified.

        Args:
            directory: Where the checkpoints lie.
            tag: Name of the checkpoint's folder.
            resharded: It is in universal format (see `ser.universal`).
        """
        mended = universal.loading(self.engine, self.optimizer) if resharded else contextlib.nullcontext()
        with warnings.catch_warnings(), mended:
            warnings.simplefilter("ignore")
            path, _ = self.engine.load_checkpoint(
                str(directory), tag=tag, load_module_strict=True, load_optimizer_states=True
            )
        if path is None:
            raise UserError("DeepSpeed found no checkpoint", where=str(directory / tag))
        if resharded:
            for name, value in load_file(str(directory / tag / BUFFERS)).items():
                self.module.get_buffer(name).copy_(value)


def _groups(
    model: nn.Module, config: OptimizerConfig, encoder: Iterable[nn.Parameter]
) -> list[dict[str, Any]]:
    """Parameter groups: encoder or not, decayed or not (biases, norms and scalars are not decayed)."""
    inside = {id(parameter) for parameter in encoder}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in inside, parameter.ndim > 1), []).append(parameter)
    if not groups:
        raise UserError("the model has no trainable parameter", hint="unfreeze a part or drop `train`")
    return [
        {
            "params": parameters,
            "lr": (config.encoder_lr or config.lr) if in_encoder else config.lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (in_encoder, decayed), parameters in sorted(groups.items())
    ]


def clips_itself(config: TrainConfig) -> bool:
    """Plain data parallelism in fp32: gradients are whole on every rank, and DeepSpeed would hide their norm."""
    return config.zero_stage == 0 and config.precision == "fp32"


def deepspeed_config(config: TrainConfig, accumulation: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Clipping is always written: DeepSpeed clips at 1.0 unless told.

    Its buckets hold 5e8 numbers by default and are allocated whole, 2 GB each: `parameters`, those of the model, are
    enough.
    """
    bucket = min(parameters + parameters % 2, 500_000_000)  # ZeRO 1 and 2 refuse an odd one
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.offload != "none":
        if config.zero_stage == 0:
            raise UserError("offload needs zero_stage 1 or more", hint="set models.NAME.train.zero_stage=2")
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.offload == "parameters":
            zero["offload_param"] = {"device": "cpu"}
    return {
        # The loader cuts batches by seconds; DeepSpeed only needs numbers that multiply out.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if clips_itself(config) else config.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def rate(schedule: str, warmup: float, step: int, total: int) -> float:
    """Factor on the base learning rate at `step` of `total`: linear warm-up, then cosine, linear or constant."""
    import math

    warm = max(1, round(warmup * total))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
