"""Training with sharded weights (PyTorch's FSDP2), for backbones too large for one device."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lfvit.errors import ConfigError
from lfvit.models.two_pass import TwoPassViT
from lfvit.training.module import Classifier
from lfvit.training.nonfinite import Averaging, NonFiniteGuard


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with every process holding a shard of everything.

    A checkpoint is one file with whole weights, as it is without sharding.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


class ShardedClassifier(Classifier):
    """A `Classifier` for `FullySharded`.

    Raises:
        ConfigError: a model whose training step reaches into it in a way that sharding cannot see.
    """

    def __init__(self, model: nn.Module, *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, **settings)
        if self.learned:
            raise ConfigError(
                "trainer=fsdp does not train a reducer with a loss of its own; use trainer=ddp"
            )
        if settings.get("compile_passes"):
            raise ConfigError("trainer=fsdp does not go with compile=true; use compile=false")

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            shard(self.model, self.device_mesh["data_parallel"])


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a one-pass or two-pass model in place: each block is gathered when it computes.

    The loop over blocks calls the parts of a block, not the block (see `run_blocks`), so that the
    parts are what is watched: the first one called gathers all of them, the last one lets go. A
    two-pass model goes through its blocks twice in each step, and they are gathered twice.
    """
    core: Any = model.backbone if isinstance(model, TwoPassViT) else model
    for block in getattr(core.blocks, "each", core.blocks):
        attn = block.attn
        parts = [block.norm1, attn.qkv, attn.q_norm, attn.k_norm, attn.norm, attn.proj]
        parts += [block.ls1, block.norm2, block.mlp, block.ls2]
        fully_shard([part for part in parts if any(True for _ in part.parameters())], mesh=mesh)
    # also after a forward, where averaging and checkpoints look
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


class ShardedAveraging(Averaging):
    """Averaged weights, sharded like the model; in checkpoints they are whole."""

    def __init__(self, decay: float, guard: NonFiniteGuard) -> None:
        super().__init__(decay, guard)
        self._average = get_ema_avg_fn(decay)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # copied before it is sharded, which cannot be copied
        module: Any = pl_module
        mesh, module._device_mesh = module._device_mesh, None
        average: Any = AveragedModel(module, module.device, self._average, use_buffers=True)
        module._device_mesh = average.module._device_mesh = mesh
        average.module.configure_model()
        average.to(trainer.strategy.root_device)
        self._average_model = average

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: _whole(value) for name, value in state.items()}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The strategy has loaded the averaged weights into the model."""
        average = self._average_model
        if average is None:
            return
        with torch.no_grad():
            for ours, theirs in zip(_tensors(average.module), _tensors(pl_module), strict=True):
                ours.copy_(theirs)
        average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=whole)


def _whole(value: Tensor) -> Tensor:
    """Gathered from all processes, which all have to ask; on the CPU."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value.cpu()


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
