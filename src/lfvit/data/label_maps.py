"""Dense labels from files: what a strong model saw where, for token labelling (Jiang et al. 2021).

A map covers the whole image. It is cut exactly where the image was cropped, and flipped with it.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.ops import roi_align

from lfvit.data.folders import ImageFolder
from lfvit.data.images import UnreadableImageError
from lfvit.errors import DataError


class LabelMaps(NamedTuple):
    """The maps of a batch, and the part of the images that is shown.

    top: (B, 2, k, H, W), the k best classes in every cell: their scores (before softmax), then
    their indices. crops: (B, 4) left, top, right, bottom as shares of width and height. flipped:
    (B,) bool, whether left and right are swapped after cropping. warps: (B, 2, 3), where the points
    of the image were before it was augmented and then cropped, as `affine_grid` takes it; None: in
    place. smoothing: of the labels.
    """

    top: Tensor
    crops: Tensor
    flipped: Tensor
    warps: Tensor | None = None
    smoothing: float = 0.0

    def patches(self, grid: int, num_classes: int) -> Tensor:
        """Labels of every patch of what is shown, in a grid of G x G: (B, G*G, C).

        RoIAlign of the scores over the crop, classes that are not among the k best counting 0, and
        a softmax over all classes, then smoothed, as in the released code: a label adds up to
        1 + smoothing / C. With one patch, the label of the whole image.
        """
        scores, classes = self.top.float().unbind(1)  # (B, k, H, W) each
        B, _, H, W = scores.shape
        dense = scores.new_zeros(B, num_classes, H, W).scatter_(1, classes.long(), scores)
        if self.warps is not None:  # what comes in from outside scores 0
            points = affine_grid(self.warps.to(dense), list(dense.shape), align_corners=False)
            dense = grid_sample(dense, points, padding_mode="border", align_corners=False)
            dense = dense * (points.abs() <= 1).all(dim=3)[:, None]
        boxes = self.crops.to(dense) * dense.new_tensor([W, H, W, H])
        cut = roi_align(dense, list(boxes[:, None].unbind(0)), grid, aligned=True)  # (B, C, G, G)
        cut = torch.where(self.flipped[:, None, None, None], cut.flip(3), cut)
        off = self.smoothing / num_classes
        return cut.flatten(2).transpose(1, 2).softmax(dim=2) * (1 - self.smoothing + off) + off


class LabelMapFolder:
    """One .pt file per training image, at the same path below the folder of classes:
    CLASS/photo.jpg has CLASS/photo.pt.

    A file holds one floating-point tensor (2, k, H, W), see `LabelMaps`, of the same size for all
    images. These are the files that the authors of token labelling published for ImageNet (k = 5,
    18 x 18 cells).

    Args:
        folder: of the maps.
        images: the training images.
        num_classes: C.

    Raises:
        DataError: no such folder, an image without a map, or a first map that is none.
    """

    def __init__(self, folder: str | Path, images: ImageFolder, num_classes: int) -> None:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.label_maps={folder}: no such folder")
        relative = (path.relative_to(images.folder) for path in images.paths)
        self.paths = [folder / path.with_suffix(".pt") for path in relative]
        self.num_classes = num_classes
        missing = [path for path in self.paths if not path.is_file()]
        if missing:
            raise DataError(
                f"data.label_maps={folder}: {len(missing)} of {len(self.paths)} training images "
                f"have no map; the first one missing is {missing[0]}. Put it there, remove the "
                "image, or set data.label_maps=null"
            )
        self.shape: torch.Size | None = None
        self.shape = self.read(0).shape

    def read(self, index: int) -> Tensor:
        """The map of an image: (2, k, H, W) float32.

        Raises:
            LabelMapError: names the file.
        """
        path = self.paths[index]
        try:
            top = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for damaged files
            raise LabelMapError(
                f"{path}: not readable as a label map ({type(error).__name__})"
            ) from error
        if not isinstance(top, Tensor) or top.ndim != 4 or len(top) != 2 or not top.numel():
            kind = tuple(top.shape) if isinstance(top, Tensor) else type(top).__name__
            raise LabelMapError(
                f"{path}: not a label map ({kind}); expected a tensor (2, k, H, W), scores and "
                "class indices"
            )
        top = top.float()
        classes = top[1]
        if self.shape not in (None, top.shape):
            fault = f"of shape {tuple(top.shape)}, not {tuple(self.shape or ())}"
        elif not top.isfinite().all():
            fault = "with values that are not finite"
        elif not torch.equal(classes, classes.round()):
            fault = "with class indices that are not whole"
        elif classes.min() < 0 or classes.max() >= self.num_classes:
            fault = (
                f"of classes {classes.min():g} to {classes.max():g}, but the data has "
                f"{self.num_classes}"
            )
        else:
            return top
        raise LabelMapError(f"{path}: a label map {fault}")


class LabelMapError(UnreadableImageError):
    """A file that is no label map of this data; its image cannot be used either."""
