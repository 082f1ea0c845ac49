"""From configs and checkpoints to models, data and Trainers, for every command."""

import inspect
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import timm
import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, open_dict
from timm.data import ImageNetInfo, resolve_data_config
from torch import nn

from lfvit.data.classes import readable_names
from lfvit.data.folders import HELD_OUT
from lfvit.data.settings import DATASETS, Preprocessing
from lfvit.errors import CheckpointError, ConfigError, DataError
from lfvit.models.checkpoints import RECORD, extract_weights, load_checkpoint, read_file
from lfvit.models.factory import create_model
from lfvit.runs.record import LOCATIONS, CheckpointRecord, make_absolute, override, read_record
from lfvit.utils.distributed import launched, number_of_devices
from lfvit.utils.validation import check_choice, plain, suggest, validate

if TYPE_CHECKING:  # Lightning takes a second to import, and prediction needs none of it
    import lightning as L

    from lfvit.data import ImageDataModule

log = logging.getLogger(__name__)

NOT_OF_METHODS = {
    "pretrained",
    "drop_path_rate",
    "backbone",
    "image_size",
    "num_classes",
    "reducer",
}
"""Arguments of `create_model` that a record's method must not set."""


class Trained(NamedTuple):
    """A model with its weights, and what its checkpoint says about it."""

    model: nn.Module
    record: CheckpointRecord


def build_model(
    settings: Mapping[str, Any] | DictConfig | CheckpointRecord, num_classes: int, **options: Any
) -> nn.Module:
    """The model of a config or record: its method, backbone, reducer and image_size.

    Raises:
        ConfigError: settings that describe no model.
    """
    if isinstance(settings, CheckpointRecord):
        settings = settings.model_dump()
    method, backbone = plain(settings["method"]), plain(settings["backbone"])
    for name in NOT_OF_METHODS & method.keys():
        raise ConfigError(f"method.{name} is no setting of a method")
    return create_model(
        method.pop("name"),
        backbone=backbone.get("timm", backbone),
        image_size=settings["image_size"],
        num_classes=num_classes,
        reducer=plain(settings.get("reducer", "none")),
        **{**method, **options},
    )


def load_trained(
    path: str | Path, overrides: Mapping[str, Any] | None = None, averaged: bool = True
) -> Trained:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a checkpoint of this project, or other weights if `overrides` describe the model.
        overrides: of method, backbone, reducer, image_size and threshold, see
            `lfvit.runs.record.override`.
        averaged: the averaged weights of a training that averages; False: the raw ones.

    Raises:
        CheckpointError, ConfigError: unreadable, not describing its model, or not fitting it.
    """
    content = read_file(path)
    if not averaged:
        if "current_model_state" not in content:  # Lightning's name
            raise CheckpointError(f"{path}: has no raw weights beside its own; set averaged=true")
        content = {**content, "state_dict": content["current_model_state"]}
    own = read_record(content, path)
    said = (overrides or {}).get("preprocessing", {})
    values = override(own.model_dump() if own else {}, overrides or {})
    for key in ("method", "backbone", "image_size"):
        if key not in values:
            raise CheckpointError(
                f"{path}: does not say what model its weights belong to; pass {key}= as well, "
                "for example method=vit backbone=deit_small image_size=224"
            )
    if own is None:
        number = _num_classes(content, path)
        imagenet = readable_names(ImageNetInfo().label_names())  # in the order of every such file
        values["classes"] = imagenet if number == 1000 else [str(i) for i in range(number)]
        values["preprocessing"] = timm_preprocessing(values) | said
    record = validate(CheckpointRecord, values)
    if own is None or own.preprocessing != record.preprocessing:
        _check_preprocessing(path, own, record)
    try:
        model = build_model(record, len(record.classes))
        load_checkpoint(model, content)
    except ConfigError as error:
        if record == own:
            raise CheckpointError(f"{path}: its record describes no model: {error}") from error
        raise
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("the state dict", str(path), 1)) from error
    return Trained(model.eval(), record)


def timm_preprocessing(settings: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """How images are prepared for timm's weights of a named backbone; the defaults for others.

    The crop is timm's for one pass only: files of two passes are of the methods' authors, who crop
    as DeiT's code does.
    """
    name, known = plain(settings["backbone"]).get("timm"), None
    if name is not None and timm.is_model(name):
        with suppress(RuntimeError):  # no such tag, which `create_model` says
            known = timm.get_pretrained_cfg(name)
    if known is None:
        return Preprocessing().model_dump()
    config = resolve_data_config(pretrained_cfg=known.to_dict())
    one_pass = settings["method"]["name"] == "vit"
    names = Preprocessing.model_fields if one_pass else ("mean", "std")
    return {key: config[key] for key in names}


def with_preprocessing(cfg: DictConfig, resumed: CheckpointRecord | None) -> DictConfig:
    """The config of a training with data.mean and data.std, where it has none those of its weights.

    These are what the checkpoint that it starts from says, or timm of its backbone.

    Raises:
        CheckpointError: others than those of the training that is continued.
    """
    known, source = resumed, f"as in {cfg.ckpt_path}"
    if known is None and cfg.init_from is not None:
        with suppress(CheckpointError):  # of another version: its weights are used alone
            known, source = read_record(read_file(cfg.init_from), ""), f"as in {cfg.init_from}"
    if known is None:
        name = plain(cfg.backbone).get("timm")
        source = f"as timm does for {name}" if name else "as on ImageNet"
    theirs = known.preprocessing.model_dump() if known else timm_preprocessing(cfg)
    said = {key: plain(cfg.data.get(key)) for key in ("mean", "std")}
    used = {key: tuple(value or theirs[key]) for key, value in said.items()}
    words = " ".join(f"data.{k}=[{','.join(f'{x:g}' for x in v)}]" for k, v in used.items())
    same = all(used[key] == tuple(theirs[key]) for key in used)
    if resumed is not None and not same:
        raise CheckpointError(f"{cfg.ckpt_path}: was not trained with {words}; leave them out")
    log.info("images are normalised with %s, %s", words, source if same else f"and not {source}")
    cfg = cfg.copy()
    with open_dict(cfg.data):
        cfg.data.update(used)
    return cfg


def _check_preprocessing(
    path: str | Path, own: CheckpointRecord | None, record: CheckpointRecord
) -> None:
    """Say how the images of weights are prepared that do not say so, or say otherwise.

    Raises:
        ConfigError: another crop than the weights were trained for.
    """
    used = record.preprocessing.model_dump()
    words = ", ".join(f"{key} {value}" for key, value in used.items())
    if own is None:
        log.info("%s: does not say how its images were prepared; used here: %s", path, words)
        return
    for key, trained in own.preprocessing.model_dump().items():
        if key not in ("mean", "std") and used[key] != trained:
            raise ConfigError(
                f"augment.{key}={used[key]}: {path} was trained and validated with {trained}; "
                "leave it out"
            )
    log.warning("%s: was trained with another mean or std; used here: %s", path, words)


def open_data(chosen: Any, record: CheckpointRecord) -> "ImageDataModule":
    """The data to evaluate a checkpoint on: its own, where the command line does not say else.

    Of a folder without a split these are the images that training held out; all of them if it was
    trained on another one.

    Args:
        chosen: the group data of the command line, or None.
        record: of the checkpoint.

    Raises:
        ConfigError: settings that cannot work, or a class that only the file names.
        DataError: other classes than the model was trained on.
    """
    own = {key: value for key, value in record.data.items() if value is not False}
    chosen = plain(chosen) or {}
    dataset, settings = chosen.get("dataset", {}), dict(chosen)
    if "_target_" not in chosen:  # no option of the group, single settings at most
        if not own:
            raise ConfigError("the checkpoint names no data; pass data=imagefolder data.root=DIR")
        for key in LOCATIONS:
            if key in chosen and key not in own:
                kind = own["dataset"]["_target_"].rpartition(".")[2]
                raise ConfigError(
                    f"data.{key} is set, but the checkpoint was trained on {kind}, which has no "
                    "such setting; say which kind of data it is as well: data=imagefolder, "
                    "data=shards or data=huggingface"
                )
        settings = {**own, **chosen}
        if dataset.get("_target_") in (None, own["dataset"]["_target_"]):
            settings["dataset"] = {**own["dataset"], **dataset}
        if settings.get("root", "") is None:
            raise ConfigError(
                "the checkpoint does not say where its images are; pass data.root=DIR"
            )
    make_absolute(settings)
    keys = ("dataset", *LOCATIONS, "name", "data_files", "train_split", "val_split")
    moved = "root" in own and own["root"] is None  # as in the zoo, which does not say where it was
    same = bool(own) and all(
        settings.get(key) == own.get(key) for key in keys if not (moved and key == "root")
    )
    if "val_fraction" in settings:
        if same:
            held_out = (own.get("val_fraction"), own.get("split_seed", own.get("seed")))
            settings["val_fraction"], settings["split_seed"] = held_out
        elif chosen.get("val_fraction") is None:
            settings["val_fraction"] = 1
    settings |= {"seed": own.get("seed", 0), "image_size": record.image_size}
    settings["augment"] = record.preprocessing.model_dump()
    settings |= {key: settings["augment"].pop(key) for key in ("mean", "std")}
    settings["cache"] = chosen.get("cache")  # of this run, not of the data
    data = make_data(settings, trusted="_target_" in dataset)
    data.setup("validate")
    data.trained_on = same and not moved
    images: Any = data.val_images
    if same and getattr(images, "held_out", False):
        trained = (record.layout or {}).get("train_images")
        left = images.num_total - len(images)
        data.trained_on = trained == left
        if trained != left and moved:  # another folder
            data = make_data(settings | {"val_fraction": 1})
            data.setup("validate")
        elif trained != left:
            log.warning(
                "training took %s images, but of those in the folder it would now take %d: it may "
                "have seen some of those evaluated",
                trained,
                left,
            )
    _check_classes(data, record)
    return data


def _check_classes(data: "ImageDataModule", record: CheckpointRecord) -> None:
    """The classes of the data have to be those that the model was trained on.

    Raises:
        DataError: other classes, or another number of them.
    """
    if record.data and data.classes != record.classes:
        unknown = sorted(set(data.classes) ^ set(record.classes)) or ["their order"]
        raise DataError(
            f"the data's {len(data.classes)} classes are not the {len(record.classes)} the "
            f"model was trained on; they differ in {', '.join(unknown[:3])}"
        )
    if len(data.classes) != len(record.classes):
        raise DataError(
            f"the data has {len(data.classes)} classes, the model {len(record.classes)} outputs"
        )
    if not record.data and data.val_images.classes != ImageNetInfo().label_names():
        log.warning(
            "the weights do not name their classes; they are taken to be in this order: %s, ...",
            ", ".join(data.classes[:3]),
        )


def check_split(init_from: str | Path | None, data: "ImageDataModule") -> None:
    """A training validates on images that the weights it starts from never saw.

    Args:
        init_from: the file of weights, or None.
        data: of the training, set up.

    Raises:
        ConfigError: the weights were trained on the same folder, and held out other images.
    """
    if init_from is None or not getattr(data.val_images, "held_out", False):
        return
    record = read_file(init_from).get(RECORD)
    own = record.get("data") if isinstance(record, dict) else None
    ours = dict(data.options)
    make_absolute(ours)
    if not isinstance(own, dict) or any(own.get(key) != ours.get(key) for key in LOCATIONS):
        return
    seed = own.get("split_seed", own.get("seed"))
    theirs = (own.get("val_fraction") or HELD_OUT, seed or 0)
    if theirs != (ours.get("val_fraction") or HELD_OUT, ours.get("split_seed") or 0):
        raise ConfigError(
            f"init_from={init_from} was trained on images that this training would validate on; "
            f"pass data.val_fraction={theirs[0]} data.split_seed={theirs[1]}, as there"
        )


def with_seed(cfg: DictConfig, record: CheckpointRecord) -> CheckpointRecord:
    """The record with the seed of the command line, if there is one.

    Raises:
        ConfigError: nothing is drawn that a seed could change.
    """
    if cfg.seed is None:
        return record
    if "random" not in str(record.method.get("selector")):
        raise ConfigError(
            f"seed={cfg.seed} has no effect: only method.selector=random or random_cells draws"
        )
    return record.model_copy(update={"seed": cfg.seed})


def make_data(settings: Mapping[str, Any], trusted: bool = True) -> "ImageDataModule":
    """The DataModule of the group data, as plain values.

    Args:
        settings: of the group.
        trusted: whether the command line names the dataset's class; else it has to be one of this
            project, whatever a file says.

    Raises:
        ConfigError: unknown settings, or a class that is not run.
    """
    target = (settings.get("dataset") or {}).get("_target_")
    if not isinstance(target, str):
        raise ConfigError("data.dataset names no class; pass data=imagefolder, or another option")
    if not trusted and target not in DATASETS:
        raise ConfigError(
            f"data.dataset._target_={target!r} is named by a file, and is only run if the command "
            f"line names it as well; of this project: {', '.join(DATASETS)}"
        )
    from lfvit.data import ImageDataModule

    arguments = {key: value for key, value in settings["dataset"].items() if key[0] != "_"}
    others = {k: v for k, v in settings.items() if k != "dataset" and k[0] != "_"}
    return ImageDataModule(partial(get_method(target), **arguments), **others)


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of Lightning's Trainer; precision "auto" is bfloat16 where `has_bfloat16`.

    Raises:
        ConfigError: no argument of the Trainer; other devices than torchrun or srun started
            processes for.
    """
    import lightning as L

    settings: dict[str, Any] = instantiate(plain(cfg.trainer), _convert_="all")
    valid = inspect.signature(L.Trainer).parameters
    for name in settings.keys() - valid:
        raise ConfigError(
            f"trainer.{name} is no argument of Lightning's Trainer; {suggest(name, valid)}"
        )
    # set either way: PyTorch would keep what the last job of this process asked for
    settings.setdefault("deterministic", bool(cfg.get("deterministic", False)))
    if settings.get("precision") == "auto":
        gpu = settings.get("accelerator") != "cpu" and torch.cuda.is_available()
        half = gpu or (has_bfloat16("cpu") and not settings["deterministic"])
        settings["precision"] = "bf16-mixed" if half else "32-true"
    here, devices, nodes = launched(), settings.get("devices", 1), settings.get("num_nodes")
    if here is None:
        if nodes not in (None, 1):
            raise ConfigError(
                f"trainer.num_nodes={nodes} needs a process for every device of every node, "
                "started with torchrun or srun, see docs/distributed.md"
            )
        return settings
    if devices in ("auto", "-1", -1):
        settings["devices"] = here.processes // here.nodes
    settings["num_nodes"] = here.nodes if nodes is None else nodes
    if number_of_devices(settings["devices"]) * settings["num_nodes"] != here.processes:
        raise ConfigError(
            f"{here.processes} processes were started on {here.nodes} node(s), but "
            f"trainer.devices={devices} and trainer.num_nodes={nodes} ask for others; use "
            "trainer=ddp, whose trainer.devices=auto takes as many as were started"
        )
    return settings


def prediction_trainer(cfg: DictConfig, run_dir: Path) -> "L.Trainer":
    """Lightning's Trainer for going through a set of images once."""
    import lightning as L

    settings = trainer_settings(cfg)
    log.info("precision %s", settings.get("precision", "32-true"))
    return L.Trainer(
        **settings,
        logger=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_checkpointing=False,
        default_root_dir=run_dir,
        use_distributed_sampler=False,
    )


def has_bfloat16(device: str) -> bool:
    """Whether products are faster in bfloat16: on GPUs, and on CPUs with AVX512-BF16 or AMX."""
    has = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    return device == "cuda" or any(supported() for supported in has)


def inference_context(precision: str, device: torch.device) -> torch.autocast:
    """What a forward runs in for precision fp32 or bf16; auto is bf16 where `has_bfloat16`."""
    check_choice("precision", precision, ["auto", "fp32", "bf16"])
    half = precision == "bf16" or (precision == "auto" and has_bfloat16(device.type))
    log.info("on %s, precision %s", device.type, "bf16" if half else "fp32")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def find_device(accelerator: str) -> torch.device:
    """auto, cpu or gpu; auto is the GPU where there is one."""
    check_choice("accelerator", accelerator, ["auto", "cpu", "gpu"])
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator=gpu, but no GPU is visible; use accelerator=cpu")
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def _num_classes(content: Mapping[str, Any], path: str | Path) -> int:
    weights = extract_weights(content, str(path))
    found = (value for key, value in weights.items() if key.split(".")[-2:] == ["head", "weight"])
    heads = [value for value in found if value.ndim]
    if not heads:
        raise CheckpointError(f"{path}: has no head.weight, so its number of classes is unknown")
    return len(heads[0])
