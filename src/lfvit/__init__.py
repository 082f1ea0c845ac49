"""lfvit: spatially adaptive vision transformers, trained, measured and compared."""

from lfvit.measure.costs import count_macs
from lfvit.measure.thresholds import sweep_thresholds
from lfvit.models import create_model
from lfvit.models.checkpoints import load_checkpoint

__version__ = "0.1.0"

__all__ = ["count_macs", "create_model", "load_checkpoint", "sweep_thresholds"]
