"""Predictions on a few images, and pictures of them: class attention and what each pass sees."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lfvit.data.augment import normalize
from lfvit.data.settings import Preprocessing
from lfvit.models.passes import confidence_of, forward_passes
from lfvit.models.tokens import downsample
from lfvit.utils.distributed import is_main_process

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from matplotlib.axes import Axes

    from lfvit.data import ImageDataModule
    from lfvit.tracking.loggers import WandbLogger

BLUE, ORANGE = "#0072B2", "#D55E00"  # safe for colour blindness
TITLE: Any = {"fontsize": 9, "parse_math": False}  # a class may be called "$5"


class Prediction(NamedTuple):
    """The passes of a model on one image. S: image side, g: side of the coarse grid.

    image: (S, S, 3) uint8. classes: names by index. logits: (passes, C) float32, on the CPU.
    exit_pass: index of the pass that answers at the threshold. target: class index, if known.
    box: x0, y0, x1, y1 of the object in pixels, if known.
    Of two passes also gca (g, g), class attention; fine_indices (4k,), row-major patches the second
    pass sees at full resolution; and of window selectors region, row and column of the window.
    """

    image: np.ndarray
    classes: Sequence[str]
    logits: Tensor
    exit_pass: int
    target: int | None = None
    box: tuple[int, ...] | None = None
    gca: Tensor | None = None
    fine_indices: Tensor | None = None
    region: tuple[int, int] | None = None
    region_size: int = 0

    def at(self, threshold: float) -> "Prediction":
        """With the pass that answers at this threshold: the first this confident, or the last."""
        confident = confidence_of(self.logits) >= threshold  # (P,)
        confident[-1] = True
        return self._replace(exit_pass=int(confident.int().argmax()))

    @property
    def exited(self) -> bool:
        """Whether a pass before the last answers."""
        return self.exit_pass < len(self.logits) - 1

    @property
    def confidence(self) -> float:
        """Largest softmax probability of the pass that answers."""
        return float(self.logits[self.exit_pass].softmax(0).max())

    @property
    def label(self) -> str:
        """The predicted class."""
        return self.classes[int(self.logits[self.exit_pass].argmax())]

    @property
    def correct(self) -> bool:
        return int(self.logits[self.exit_pass].argmax()) == self.target

    @property
    def caption(self) -> str:
        """The predicted class with its confidence, and the right one where it is another."""
        wrong = self.target is not None and not self.correct
        truth = f"\n(it is {self.classes[self.target]})" if wrong else ""  # type: ignore[index]
        return f"{self.label}, {self.confidence:.0%}{truth}"

    @property
    def first(self) -> "Prediction":
        """As if the first pass answered."""
        return self._replace(exit_pass=0)

    @property
    def coarse_image(self) -> np.ndarray:
        """(S/2, S/2, 3) uint8: what the first of two passes sees."""
        pixels = torch.from_numpy(self.image).permute(2, 0, 1).float()
        return _to_array(downsample(pixels[None])[0])


@torch.no_grad()
def predict_images(
    model: nn.Module,
    pixels: Tensor,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    threshold: float,
    targets: Sequence[int] | None = None,
    boxes: Sequence[tuple[int, ...] | None] | None = None,
) -> list[Prediction]:
    """Run all passes on a few images.

    Args:
        model: on any device; its mode is restored.
        pixels: (B, 3, S, S) uint8, not normalised.
        preprocessing: the mean and std that the model expects.
        classes: names by class index.
        threshold: eta; the first pass this confident answers, otherwise the last.
        targets: class indices, if known.
        boxes: of the objects, if known.
    """
    parameter = next(model.parameters())
    was_training = model.training
    images = normalize(pixels.to(parameter.device), preprocessing).to(parameter.dtype)
    output = forward_passes(model.eval(), images)
    model.train(was_training)
    logits = torch.stack([of_pass.float().cpu() for of_pass in output.logits], dim=1)  # (B, P, C)
    size: Any = getattr(model, "region_size", 0)
    selection = output.selection
    region = None if selection is None else selection.region
    return [
        Prediction(
            image=_to_array(pixels[i]),
            classes=classes,
            logits=logits[i],
            exit_pass=0,
            target=None if targets is None else int(targets[i]),
            box=None if boxes is None else boxes[i],
            gca=None if selection is None else selection.gca[i].float().cpu(),
            fine_indices=None if selection is None else selection.fine_indices[i].cpu(),
            region=None if region is None else tuple(region[i].tolist()),
            region_size=0 if region is None else size,
        ).at(threshold)
        for i in range(len(pixels))
    ]


def draw_predictions(predictions: Sequence[Prediction], path: Path | IO[bytes]) -> None:
    """One row per image: half resolution with the first answer, class attention over the image, the
    second pass's input with its answer; below, what colours mean. Of a one-pass model, the image.
    """
    import matplotlib as mpl  # of an extra
    from matplotlib.figure import Figure

    panels = 1 if predictions[0].gca is None else 3
    with mpl.rc_context({"font.size": 10, "axes.grid": False}):
        figure = Figure(figsize=(2.6 * panels, 2.8 * len(predictions)), layout="constrained")
        grid = figure.subplots(len(predictions), panels, squeeze=False)
        for axes, one in zip(grid, predictions, strict=True):
            images, titles = [one.image], [one.caption]
            if one.gca is not None:
                images = [one.coarse_image, attention_image(one), second_pass_image(one)]
                titles = [f"first pass: {one.first.caption}", "class attention", "second pass: "]
                titles[2] += "not run" if one.exited else one.caption
                draw_frames(axes[2], one)
            side = one.image.shape[0]
            for axis, image, title in zip(axes, images, titles, strict=True):
                axis.imshow(image, extent=(0, side, side, 0))
                axis.set_axis_off()
                axis.set_title(title, **TITLE)
        if panels > 1:
            figure.legend(
                handles=_legend(predictions),
                loc="outside lower center",
                ncols=2,
                frameon=False,
                fontsize=8,
            )
        figure.savefig(path, dpi=120)


def second_pass_image(prediction: Prediction) -> np.ndarray:
    """(S, S, 3) uint8: the second pass's input, what stays at half resolution paler."""
    assert prediction.gca is not None
    assert prediction.fine_indices is not None
    patches = 2 * prediction.gca.shape[0]
    patch = prediction.image.shape[0] // patches
    fine = np.zeros(patches * patches, dtype=bool)
    fine[prediction.fine_indices.numpy()] = True
    mask = np.kron(fine.reshape(patches, patches), np.ones((patch, patch), dtype=bool))
    coarse = prediction.coarse_image.repeat(2, axis=0).repeat(2, axis=1)
    pale = (0.55 * coarse + 0.45 * 255).astype(np.uint8)
    return np.where(mask[..., None], prediction.image, pale)


def attention_image(prediction: Prediction) -> np.ndarray:
    """(S, S, 3) uint8: the image in grey under its class attention, from dark to bright."""
    from matplotlib import colormaps

    assert prediction.gca is not None
    gca = prediction.gca.double().numpy()
    scaled = (gca - gca.min()) / max(gca.max() - gca.min(), 1e-12)
    cell = prediction.image.shape[0] // gca.shape[0]
    colours = colormaps["inferno"](np.kron(scaled, np.ones((cell, cell))))[..., :3]
    grey = prediction.image.mean(axis=2, keepdims=True)
    return (0.4 * grey + 0.6 * 255 * colours).round().astype(np.uint8)


def _legend(predictions: Sequence[Prediction]) -> list[Any]:
    """Of the colours and frames that occur."""
    from matplotlib.patches import Patch

    window = {one.exited for one in predictions if one.region is not None}
    frames = {
        "the second pass's window": (ORANGE, "-", False in window),
        "the window of a second pass that was not needed": (BLUE, "--", True in window),
        "the object": ("0.6", "-", any(one.box is not None for one in predictions)),
    }
    return [
        *(
            Patch(fill=False, ec=c, ls=ls, label=text)
            for text, (c, ls, there) in frames.items()
            if there
        ),
        Patch(fc="0.9", label="pale: stays at half resolution"),
    ]


def draw_frames(axes: "Axes", prediction: Prediction) -> None:
    """The window, dashed where the second pass was not run, and the object's box in white."""
    from matplotlib.patches import Rectangle

    if prediction.region is not None and prediction.gca is not None:
        cell = prediction.image.shape[0] / prediction.gca.shape[0]
        row, column = (cell * position for position in prediction.region)
        size = cell * prediction.region_size
        style = ("--", BLUE) if prediction.exited else ("-", ORANGE)
        axes.add_patch(
            Rectangle((column, row), size, size, fill=False, lw=2.5, ls=style[0], ec=style[1])
        )
    if prediction.box is not None:
        x0, y0, x1, y1 = prediction.box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec="white", lw=1))


def _to_array(pixels: Tensor) -> np.ndarray:
    """(3, H, W) in 0..255 -> (H, W, 3) uint8."""
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def log_predictions(
    loggers: "Sequence[Logger]",
    model: nn.Module,
    data: "ImageDataModule",
    threshold: float,
    count: int,
    step: int | None = None,
) -> None:
    """Log predictions on some validation images, spread over the classes.

    W&B gets "predictions", a table, and "regions", a picture per image with class attention and the
    second pass's input (see `draw_predictions`); TensorBoard gets the pictures as one.

    Args:
        loggers: others than these two get nothing; without these two, nothing is computed.
        model: on any device.
        data: set up for validation.
        threshold: eta.
        count: number of images.
        step: optimizer steps taken.

    Raises:
        DataError: none of the images can be read.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    from lfvit.tracking.loggers import WandbLogger

    media = [log for log in loggers if isinstance(log, WandbLogger | TensorBoardLogger)]
    if not (media and count and is_main_process()):
        return
    samples = data.some_validation_samples(count)
    pixels = torch.stack([sample.pixels for sample in samples])
    targets, boxes = [s.target for s in samples], [s.box for s in samples]
    predictions = predict_images(
        model, pixels, data.preprocessing, data.classes, threshold, targets, boxes
    )
    for logger in media:
        if isinstance(logger, WandbLogger):
            logger.attempt(_log_wandb, logger, predictions, step)
        else:
            picture = np.asarray(picture_of(predictions))
            logger.experiment.add_image("regions", picture, step, dataformats="HWC")
            logger.experiment.flush()


def _log_wandb(logger: "WandbLogger", predictions: Sequence[Prediction], step: int | None) -> None:
    import wandb

    rows: list[list[Any]] = []
    for one in predictions:
        target = None if one.target is None else one.classes[one.target]
        rows.append([wandb.Image(one.image), target, one.label, one.confidence, one.exit_pass + 1])
    columns = ["image", "target", "prediction", "confidence", "exit_pass"]
    logger.log_table("predictions", columns, rows, step=step)
    captions = [one.caption for one in predictions]
    logger.log_image("regions", [picture_of([one]) for one in predictions], step, caption=captions)


def picture_of(predictions: Sequence[Prediction]) -> Image.Image:
    """What `draw_predictions` draws."""
    file = BytesIO()
    draw_predictions(predictions, file)
    return Image.open(file).convert("RGB")
