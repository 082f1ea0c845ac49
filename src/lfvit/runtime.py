"""Exported models without PyTorch: numpy, Pillow and onnxruntime are all this needs.

`export.py` writes the folder that `load` opens. On the command line:

    python -m lfvit.runtime FOLDER IMAGE...
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lfvit.data.images import FILTERS, center_crop, images_of, read_image, to_rgb
from lfvit.errors import ConfigError, LFViTError
from lfvit.utils.signals import outlive_output

Picture = str | Path | Image.Image | np.ndarray
"""A path, an opened image, or pixels (H, W, 3) or (H, W) uint8."""

CARD = "model.json"
GRAPH = "model.onnx"
FORMAT = 4


class Output(NamedTuple):
    """Predictions for B images.

    logits: (B, C) float32, of the pass at which each image stopped.
    exited: (B,) bool, whether the image stopped after the first pass, or there is only one.
    confidence: (B,) float32, largest softmax probability of the first pass.
    macs: (B,) float, multiply-accumulates spent on each image, whatever the precision.
    region: (B, 2) row and column of the window's top-left coarse cell; None without windows.
    fine_indices: (B, 4k) fine patches of the second pass, run or not; None for one pass.
    """

    logits: np.ndarray
    exited: np.ndarray
    confidence: np.ndarray
    macs: np.ndarray
    region: np.ndarray | None = None
    fine_indices: np.ndarray | None = None


class Runtime:
    """An exported model; made by `load`.

    Attributes:
        card: content of ``model.json``.
        session: of onnxruntime; of two passes with early exit inside.
    """

    def __init__(self, card: dict[str, Any], session: Any) -> None:
        self.card = card
        self.session = session
        self.classes: list[str] = card["classes"]
        self._mean = np.array(card["mean"], np.float32)[:, None, None] * 255
        self._std = np.array(card["std"], np.float32)[:, None, None] * 255

    def predict(
        self, images: Picture | Sequence[Picture], threshold: float | None = None
    ) -> Output:
        """Classify pictures of any size, one or a sequence of B, in one batch, see `infer`.

        Raises:
            UnreadableImageError: a file that is no image.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            images = [images]
        size = self.card["image_size"]
        batch = np.empty((len(images), 3, size, size), np.float32)
        for row, image in zip(batch, images, strict=True):
            row[:] = self.prepare(image)
        return self.infer(batch, threshold)

    def prepare(self, image: Picture) -> np.ndarray:
        """Resize the shorter side to S / crop_pct, crop the centre, normalise: (3, S, S) float32.

        Pixels differ from those of the evaluation with PyTorch by one grey level, rarely two.
        """
        if isinstance(image, str | Path):
            opened = read_image(Path(image).expanduser(), exif=self.card.get("exif", False))
        else:
            opened = to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
        card = self.card
        size, crop_pct, mode = card["image_size"], card["crop_pct"], card.get("crop_mode", "center")
        cropped = center_crop(opened, size, crop_pct, card["interpolation"], mode)
        pixels = np.asarray(cropped, np.float32)
        return (pixels.transpose(2, 0, 1) - self._mean) / self._std

    def infer(self, images: np.ndarray, threshold: float | None = None) -> Output:
        """Early exit: only images whose confidence is below `threshold` get the second pass.

        Args:
            images: (B, 3, S, S) float32, normalised, see `prepare`; B may be 0.
            threshold: eta, None for the card's; at 0 every image stops after the first pass, above
                1 none. Without effect on a one-pass model.
        """
        threshold = self.card["threshold"] if threshold is None else threshold
        if not threshold >= 0:
            raise ConfigError(f"threshold={threshold!r} is out of range; valid: 0 or more")
        if not len(images):  # some graphs cannot run on nothing
            none = np.zeros(0, np.float32)
            return Output(np.zeros((0, len(self.classes)), np.float32), none > 0, none, none)
        macs: list[float] = self.card["macs"]
        inputs = {"images": images}
        if len(macs) > 1:
            inputs["threshold"] = np.array(threshold, np.float32)
        names = [node.name for node in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(names, inputs), strict=True))
        if len(macs) == 1:
            found["exited"] = np.ones(len(images), bool)
            found["confidence"] = softmax(found["logits"]).max(axis=1)
        return Output(macs=macs[0] + sum(macs[1:]) * ~found["exited"], **found)


def load(
    folder: str | Path, *, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Runtime:
    """Open what `export.py` wrote.

    Args:
        folder: with model.json and model.onnx.
        threads: of one run; 0 is onnxruntime's own choice, all cores.
        providers: of onnxruntime, the first that is there runs the model.

    Raises:
        ConfigError: not such a folder, one that is damaged, or onnxruntime is not installed.
    """
    folder = Path(folder).expanduser()
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{folder}: has no {CARD}; pass the folder that export.py wrote"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{folder / CARD}: not JSON; export the model again") from error
    if not isinstance(card, dict):
        raise ConfigError(f"{folder / CARD}: not a JSON object; export the model again")
    if card.get("format") != FORMAT:
        raise ConfigError(
            f"{folder / CARD}: format={card.get('format')!r} is unknown; valid: {FORMAT}. Export "
            "the model again with this version of lfvit"
        )
    if not (folder / GRAPH).is_file():
        raise ConfigError(f"{folder}: has no {GRAPH}; pass the folder that export.py wrote")
    graph = open_graph(folder / GRAPH, threads, providers)
    try:
        _check(card, graph)
        return Runtime(card, graph)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder / CARD}: incomplete, or of another model ({error}); export the model again"
        ) from error


def _check(card: dict[str, Any], session: Any) -> None:
    """Raise KeyError, TypeError or ValueError for an incomplete card, or one of another model."""
    float(card["threshold"]), float(card["crop_pct"]), FILTERS[card["interpolation"]]
    images, *others = session.get_inputs()
    logits = next(node for node in session.get_outputs() if node.name == "logits")
    graph = images.shape[2:], len(others) + 1, logits.shape[1]
    if graph != ([card["image_size"]] * 2, sum(m > 0 for m in card["macs"]), len(card["classes"])):
        raise ValueError(f"{GRAPH} has other inputs and outputs")
    if session.get_modelmeta().custom_metadata_map.get("weights") != card["weights"]:
        raise ValueError(f"{GRAPH} has other weights")


def open_graph(path: Path, threads: int, providers: Sequence[str]) -> Any:
    """A session of onnxruntime, see `load`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("onnxruntime is not installed; pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, list(providers))
    except Exception as error:  # onnxruntime's own kinds, one for each damage
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path}: onnxruntime cannot open it ({reason}); export the model again"
        ) from error


def softmax(logits: np.ndarray) -> np.ndarray:
    """(B, C) logits -> probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Classify images: the best classes, the number of passes and the cost of each one."""
    outlive_output()
    parser = argparse.ArgumentParser(prog="python -m lfvit.runtime", description=main.__doc__)
    parser.add_argument("folder", help="what export.py wrote")
    parser.add_argument("image", nargs="+", type=Path, help="a file, or a folder of them")
    parser.add_argument("--threshold", type=float, help="eta; the exported one if left out")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error("--top has to be 1 or more")
    try:
        model = load(options.folder)
        for path in (file for given in options.image for file in images_of(given, "IMAGE")):
            output = model.predict(path, options.threshold)
            print(f"\n{path}")
            probabilities = softmax(output.logits)[0]
            for index in np.argsort(-probabilities, kind="stable")[: options.top]:
                print(f"  {100 * probabilities[index]:5.1f} %  {model.classes[index]}")
            passes = 1 if output.exited[0] else 2
            print(f"  pass {passes} of {len(model.card['macs'])}, {output.macs[0] / 1e9:.3f} GMACs")
    except LFViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
