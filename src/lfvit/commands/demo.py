"""`demo(cfg)`: a page that classifies photographs, and shows where the second pass looked."""

import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from PIL import Image

from lfvit.commands.predict import predict_file
from lfvit.data.augment import normalize
from lfvit.data.images import images_of
from lfvit.data.needle import NeedleSet
from lfvit.errors import ConfigError
from lfvit.measure.costs import pass_macs
from lfvit.measure.throughput import time_interleaved
from lfvit.models.export import pass_modules
from lfvit.models.passes import num_passes
from lfvit.runs.models import Trained, build_model, load_trained
from lfvit.runs.record import CheckpointRecord, model_overrides
from lfvit.runs.trainers import find_device, inference_context
from lfvit.tracking.pictures import Prediction, picture_of
from lfvit.utils.markdown import to_markdown
from lfvit.utils.signals import StopSignals

SHIPPED = {"zoo:lf_vit_needle": "zoo:vit_needle", "zoo:lf_vit_small_imagenette": None}
"""Models on the page where none is named -> the one-pass models beside them, if there are any."""

NUM_EXAMPLES = 8
NUM_CLASSES = 20  # named beside the photograph
INTRO = """# Early exit

The first pass sees the image at half resolution. If it is confident enough, its answer stands.
Otherwise a second pass sees the most important region at full resolution. Drop a photograph or
click an example, then move the threshold: both passes ran once, and only the choice between them
changes.
"""


class Seen(NamedTuple):
    """All passes on one image, and a ViT in one pass beside them.

    pictures: one for each pass that may answer. ms: milliseconds of each pass by itself, then of
    the one-pass ViT. one_pass: its prediction; None where it is not trained.
    """

    prediction: Prediction
    pictures: list[Image.Image]
    ms: list[float]
    one_pass: Prediction | None


class Shown:
    """A model on the page, and the one-pass ViT that it is compared with.

    Args:
        cfg: of the command.
        ckpt_path: the model.
        baseline: the one-pass ViT; None takes the cost of an untrained one of the same size.

    Raises:
        ConfigError: a model with one pass, or a baseline with several.
        CheckpointError: a file that cannot be used.
    """

    def __init__(self, cfg: DictConfig, ckpt_path: str, baseline: str | None) -> None:
        self.trained = load_trained(ckpt_path, model_overrides(cfg))
        model, self.record = self.trained
        if num_passes(model) == 1:
            raise ConfigError(
                f"ckpt_path={ckpt_path} has one pass, and nothing to exit from; pass it as "
                "baseline= beside a model with two"
            )
        self.one_pass = _one_pass_like(self.record) if baseline is None else load_trained(baseline)
        if num_passes(self.one_pass.model) > 1:
            raise ConfigError(f"baseline={baseline} has several passes; pass it as ckpt_path=")
        if self.one_pass.record.classes != self.record.classes:
            raise ConfigError(
                f"baseline={baseline} knows other classes than ckpt_path={ckpt_path}; pass one "
                "that was trained on the same data"
            )
        self.name, self.has_baseline = ckpt_path, baseline is not None
        self.device = find_device(cfg.accelerator)
        self.context = inference_context(cfg.precision, self.device)
        self.gmacs = [macs / 1e9 for macs in pass_macs(model) + pass_macs(self.one_pass.model)]
        for one in (model, self.one_pass.model):
            one.to(self.device)

    def see(self, path: str | None) -> Seen | None:
        """Run all passes on an image file, and time them.

        Raises:
            UnreadableImageError: no image.
        """
        if path is None:
            return None
        with self.context:
            prediction, one_pass = (
                predict_file(one, path) for one in (self.trained, self.one_pass)
            )
            passes = self._passes(self.trained, prediction) + self._passes(self.one_pass, one_pass)
            cases = {str(number): run for number, run in enumerate(passes)}
            seconds = time_interleaved(cases, warmup=1, repeats=5, device=self.device)
        return Seen(
            prediction,
            [picture_of([prediction._replace(exit_pass=i)]) for i in range(len(passes) - 1)],
            [1e3 * median(times) for times in seconds.values()],
            one_pass if self.has_baseline else None,
        )

    def answer(self, seen: Seen | None, threshold: float) -> tuple[Any, Any, str]:
        """The page at a threshold, without running a model: probabilities, picture, costs."""
        if seen is None:
            return None, None, ""
        number = seen.prediction.at(threshold).exit_pass
        rows = []
        for i in range(len(seen.pictures)):
            name = f"after pass {i + 1}" + (" ← answers" if i == number else "")
            costs = sum(self.gmacs[: i + 1]), sum(seen.ms[: i + 1])
            rows.append(_row(name, seen.prediction._replace(exit_pass=i), *costs))
        rows.append(_row("in one pass", seen.one_pass, self.gmacs[-1], seen.ms[-1]))
        formats = {"confidence": ".0%", "GMACs": ".4f", "ms": ".1f"}
        text = (
            f"**Pass {number + 1} answers**, at {rows[number]['GMACs'] / self.gmacs[-1]:.0%} of "
            f"the multiply-accumulates of one pass on all of the image.\n\n"
            f"{to_markdown(rows, formats)}\n\nMilliseconds on this machine ({self.device.type}), "
            "one image at a time, median of 5."
        )
        if seen.one_pass is None:
            text += " The one-pass ViT is not trained: it has a cost and no answer."
        probabilities = seen.prediction.logits[number].softmax(dim=0).tolist()
        classes = dict(zip(self.record.classes, probabilities, strict=True))
        return classes, seen.pictures[number], text

    def examples(self, image: str | None, folder: Path) -> list[str]:
        """Files to try: of ``image``, or pictures of the needle set for a model trained on it."""
        if image is not None:
            return [str(path) for path in images_of(image)[:NUM_EXAMPLES]]
        if "NeedleSet" not in self.record.data.get("dataset", {}).get("_target_", ""):
            return []
        size, number = self.record.image_size, len(self.record.classes)
        images = NeedleSet("val", image_size=size, num_classes=number)
        paths = [folder / f"needle_{size}_{number}_{index}.png" for index in range(NUM_EXAMPLES)]
        for index, path in enumerate(paths):
            Image.fromarray(images[index][0]).save(path)
        return [str(path) for path in paths]

    def _passes(self, trained: Trained, prediction: Prediction) -> list[Any]:
        """The passes of a model on the image of a prediction, to be called one after the other."""
        pixels = torch.from_numpy(prediction.image).permute(2, 0, 1)[None].to(self.device)
        images = normalize(pixels, trained.record.preprocessing)
        passes = pass_modules(trained.model, images)
        return [partial(one.module, *one.inputs.values()) for one in passes]


def page(models: Sequence[Shown], image: str | None, folder: Path) -> Any:
    """The page, a `gradio.Blocks`, with a tab for each model; example files go to the folder."""
    import gradio as gr

    with gr.Blocks(title="lfvit", analytics_enabled=False) as blocks:
        gr.Markdown(INTRO)
        for shown in models:
            classes = shown.record.classes
            known = ", ".join(classes[:NUM_CLASSES]) + ", ..." * (len(classes) > NUM_CLASSES)
            with gr.Tab(shown.name), gr.Row():
                seen = gr.State()
                with gr.Column():
                    file = gr.Image(type="filepath", image_mode=None, label="photograph")
                    if examples := shown.examples(image, folder):
                        gr.Examples(examples, file)
                    gr.Textbox(known, label="it knows", interactive=False)
                with gr.Column(scale=2):
                    threshold = gr.Slider(
                        *(0, 1.01, shown.record.threshold),
                        step=0.01,
                        label="threshold: how confident the first pass has to be",
                    )
                    label = gr.Label(num_top_classes=3, label="answer")
                    drawn = gr.Image(interactive=False, show_label=False, buttons=[])
                    text = gr.Markdown()
            answer: dict[str, Any] = {
                "fn": shown.answer,
                "inputs": [seen, threshold],
                "outputs": [label, drawn, text],
                "show_progress": "hidden",
            }
            file.change(shown.see, file, seen, concurrency_id="model").success(**answer)
            threshold.change(**answer, trigger_mode="always_last")
    return blocks


def demo(cfg: DictConfig) -> None:
    """Serve the page on this machine until a signal ends it.

    Raises:
        LFViTError: a setting or a checkpoint is at fault, or the port is taken.
        ImportError: gradio is not installed.
    """
    with TemporaryDirectory() as folder, StopSignals():
        os.environ |= {  # photographs stay on this machine, and as long as the page
            "GRADIO_ANALYTICS_ENABLED": "False",
            "GRADIO_RUN_HISTORY": "False",
            "GRADIO_TEMP_DIR": folder,
        }
        import gradio as gr

        logging.getLogger("httpx").setLevel(logging.WARNING)
        check_port(cfg.port)
        if cfg.ckpt_path is None and cfg.baseline is not None:
            raise ConfigError(f"baseline={cfg.baseline} needs the model it goes with, ckpt_path=")
        pairs = SHIPPED if cfg.ckpt_path is None else {cfg.ckpt_path: cfg.baseline}
        models = [Shown(cfg, *pair) for pair in pairs.items()]
        blocks = page(models, cfg.image, Path(folder))
        blocks.launch(
            server_port=cfg.port,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            share=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"the page is at {blocks.local_url}; Ctrl+C ends it", flush=True)
        blocks.block_thread()


def check_port(port: int) -> None:
    """Refuse a port that cannot be had.

    Raises:
        ConfigError: naming one that is free.
    """
    with socket.socket() as wanted, socket.socket() as free:
        try:
            wanted.bind(("127.0.0.1", port))
        except OSError as error:
            free.bind(("127.0.0.1", 0))
            raise ConfigError(
                f"port={port}: {error.strerror}; another one is port={free.getsockname()[1]}"
            ) from error


def _one_pass_like(record: CheckpointRecord) -> Trained:
    """An untrained ViT with the backbone of a model, for images of the same size."""
    plain = {"method": {"name": "vit"}, "reducer": {"name": "none"}}
    record = record.model_copy(update=plain)
    return Trained(build_model(record, len(record.classes)).eval(), record)


def _row(name: str, one: Prediction | None, gmacs: float, ms: float) -> dict[str, Any]:
    answer = {"answer": one.label if one else None, "confidence": one.confidence if one else None}
    return {"": name, **answer, "GMACs": gmacs, "ms": ms}
