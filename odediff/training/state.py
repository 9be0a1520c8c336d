"""What changes during a run: network, average, optimiser, random numbers; one step, and in and out of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import UNet, zero_residuals
from .checkpoint import read_checkpoint, restore_rng, rng_states, write_checkpoint
from .config import TrainConfig
from .ema import EMA
from .losses import DenoisingLoss

AMP_DTYPES = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainState:
    """A run between two steps. `advance` makes one; nothing in it waits for the device."""

    def __init__(self, config: TrainConfig, network: Mapping[str, Any], loss: DenoisingLoss) -> None:
        self.config, self.loss, self.device = config, loss, loss.device
        self.step = 0
        # A CPU's GroupNorm in bfloat16 is slow on channels_last, by more than its convolutions gain from it.
        plain = config.amp == "bf16" and self.device.type == "cpu"
        layout = torch.contiguous_format if plain else torch.channels_last
        self.net = zero_residuals(UNet(**network)).to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.ema = EMA(self.net, config.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loss_count = 0
        self._forward: nn.Module = torch.compile(self.net, dynamic=False) if config.compile else self.net  # type: ignore[assignment]

    def _predict(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, AMP_DTYPES[self.config.amp], enabled=self.config.amp != "off"):
            out: Tensor = self._forward(x, t, label)
        return out

    def advance(self, x0: Tensor, label: Tensor | None = None) -> None:
        """One update on the batch `x0`: Ho et al. 2020, Algorithm 1, line 5. label: (N,), of a network with classes."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step)
        loss = self.loss(lambda x, t: self._predict(x, t, label), x0)
        self.scaler.scale(loss).backward()
        if config.grad_clip > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), config.grad_clip, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.net, self.step)
        self.loss_sum += loss.detach()
        self.loss_count += 1
        self.step += 1

    def take_loss(self) -> float:
        """The mean loss since the last call, which waits for the device.

        Raises `FloatingPointError` if it, or any weight, is no longer finite.
        """
        self.check_finite()
        mean = float(self.loss_sum) / max(1, self.loss_count)
        self.loss_sum.zero_()
        self.loss_count = 0
        return mean

    def check_finite(self) -> None:
        """Raise `FloatingPointError` if the loss or a weight is not finite. Waits for the device."""
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.net.parameters()]))
        if not bool(torch.isfinite(norms.sum() + self.loss_sum)):
            raise FloatingPointError(
                f"the loss or the weights stopped being finite by step {self.step} (mean loss "
                f"{float(self.loss_sum) / max(1, self.loss_count):g}): try a lower lr (now {self.config.lr:g}), a "
                "grad_clip above 0, or amp off"
            )

    def save(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Write everything to `path`. Raises as `check_finite` does: a spoiled run never replaces a good checkpoint."""
        self.check_finite()
        tensors = {"loss_sum": self.loss_sum, **rng_states(self.device)}
        for name, parameter in self.net.named_parameters():
            tensors[f"net.{name}"] = parameter
            for moment in MOMENTS:
                tensors[f"adam.{moment}.{name}"] = self.optimizer.state[parameter][moment]
            tensors["adam.step"] = self.optimizer.state[parameter]["step"]
        tensors.update({f"ema.{name}": p for name, p in self.ema.net.named_parameters()})
        own = {"step": self.step, "loss_count": self.loss_count, "scaler": self.scaler.state_dict()}
        write_checkpoint(path, tensors, {**own, **meta})

    def restore(self, path: Path) -> dict[str, Any]:
        """Continue from what `save` wrote to `path`; returns its JSON part."""
        tensors, meta = read_checkpoint(path)
        self.step, self.loss_count = meta["step"], meta["loss_count"]
        self.scaler.load_state_dict(meta["scaler"])
        with torch.no_grad():
            self.loss_sum.copy_(tensors["loss_sum"])
            for name, parameter in self.ema.net.named_parameters():
                parameter.copy_(tensors[f"ema.{name}"])
            for name, parameter in self.net.named_parameters():
                parameter.copy_(tensors[f"net.{name}"])
                state = self.optimizer.state[parameter]
                state["step"] = tensors["adam.step"].to(self.device, copy=True)
                for moment in MOMENTS:
                    state[moment] = torch.empty_like(parameter).copy_(tensors[f"adam.{moment}.{name}"])
        restore_rng(tensors, self.device)
        return meta
