"""lfvit: spatially adaptive vision transformers, trained, measured and compared."""

import sys
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfvit.measure.costs import count_macs
    from lfvit.measure.thresholds import sweep_thresholds
    from lfvit.models.checkpoints import load_checkpoint
    from lfvit.models.factory import create_model
    from lfvit.models.reduction import reduce, restore
    from lfvit.results.hub import Pretrained

__version__ = "0.1.0"

_MODULES = {
    "count_macs": "measure.costs",
    "create_model": "models.factory",
    "Pretrained": "results.hub",
    "load_checkpoint": "models.checkpoints",
    "reduce": "models.reduction",
    "restore": "models.reduction",
    "sweep_thresholds": "measure.thresholds",
}

__all__ = [
    "Pretrained",
    "count_macs",
    "create_model",
    "load_checkpoint",
    "reduce",
    "restore",
    "sweep_thresholds",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a wrong setting is answered before PyTorch is loaded."""
    if name in _MODULES:
        return getattr(import_module(f"lfvit.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'lfvit' has no attribute {name!r}")


class _RegisterWithTimm:
    """Names the models to timm as soon as that is imported, which takes seconds."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = util.find_spec("timm")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                import_module("lfvit.models.timm_names")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    import_module("lfvit.models.timm_names")
else:
    sys.meta_path.insert(0, _RegisterWithTimm())


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
