"""RoIAlign over all pyramid levels at once, as one weighted gather of channels-last rows.

torchvision's CPU RoIAlign scatters its gradient element by element in one thread: a quarter of a training step. Here a
bin's value is a weighted sum of at most 16 feature rows, which `embedding_bag` computes in both directions, vectorised
over channels and in parallel. Numbers equal torchvision's up to the order of summation.

Other devices keep torchvision's kernels, which are good there (with ``--deterministic`` they gather too: the kernel's
gradient is added up in whatever order threads arrive), but not its question to the device for every level:
boxes are sorted by level, and one read says how many each has, for all poolers that work on the same boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.boxes import box_area
from torchvision.ops.poolers import _setup_scales


class Pyramid(NamedTuple):
    """Feature maps of all levels as rows (pixel, channel), level by level, image by image; float32."""

    rows: Tensor
    levels: dict[str, Tensor]
    names: tuple[str, ...]
    heights: Tensor
    widths: Tensor
    starts: Tensor


def flatten(levels: dict[str, Tensor], names: tuple[str, ...]) -> Pyramid:
    """The levels called ``names``, each (B, C, H, W), flattened; a channels-last level is copied once."""
    maps = [levels[n] for n in names]
    rows = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])
    if rows.dtype in (torch.bfloat16, torch.float16):
        # As torchvision does under autocast: interpolation in float32.
        rows = rows.float()
    pixels = [m.shape[0] * m.shape[2] * m.shape[3] for m in maps]
    starts = [sum(pixels[:i]) for i in range(len(maps))]
    heights, widths, first = torch.tensor([[m.shape[2] for m in maps], [m.shape[3] for m in maps], starts]).to(
        rows.device
    )
    return Pyramid(rows, levels, names, heights, widths, first)


class Sorted(NamedTuple):
    """Levels, the order that sorts the boxes by level (N,), and how many boxes each of the pool's levels has."""

    levels: dict[str, Tensor]
    order: Tensor
    counts: list[int]


class FastPool(MultiScaleRoIAlign):
    """`MultiScaleRoIAlign` with the same numbers, attributes and calls.

    It also takes a `Pyramid` made by `flatten`, or what `sort_boxes` made of the very boxes.
    """

    def forward(
        self, x: dict[str, Tensor] | Pyramid | Sorted, boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Features of the boxes, float (N, C, P, P), on the CPU channels-last. Boxes: list of (n, 4), xyxy, pixels."""
        levels = x.levels if isinstance(x, (Pyramid, Sorted)) else x
        maps = self.set_up(levels, image_shapes)
        gather = gathers(maps[0].device)
        if len(maps) < 2 or (gather and self.sampling_ratio <= 0):
            return super().forward(levels, boxes, image_shapes)
        if not gather:
            return self._by_level(maps, boxes, x if isinstance(x, Sorted) else sort_boxes(levels, [(self, boxes)])[0])
        assert self.scales is not None
        names = tuple(n for n in levels if n in self.featmap_names)
        pyramid = x if isinstance(x, Pyramid) and x.names == names else flatten(levels, names)
        counts = torch.tensor([len(b) for b in boxes])
        flat = torch.cat(boxes).to(pyramid.rows.dtype)
        image = torch.repeat_interleave(torch.arange(len(boxes)), counts).to(flat.device)
        level = self.level_of(flat)
        scale = torch.tensor(self.scales, dtype=flat.dtype, device=flat.device)[level]
        size = self.output_size[0], self.output_size[1]
        pooled = gather_rois(pyramid, flat * scale[:, None], level, image, size, self.sampling_ratio)
        return pooled.to(maps[0].dtype)

    def set_up(self, levels: dict[str, Tensor], image_shapes: list[tuple[int, int]]) -> list[Tensor]:
        """The maps that the pool reads; the first call finds out their scales."""
        maps = [m for n, m in levels.items() if n in self.featmap_names]
        if self.scales is None or self.map_levels is None:
            self.scales, self.map_levels = _setup_scales(maps, image_shapes, self.canonical_scale, self.canonical_level)
        return maps

    def _by_level(self, maps: list[Tensor], boxes: list[Tensor], x: Sorted) -> Tensor:
        """torchvision's kernel on each level's boxes; no level is left out, so that each has a gradient."""
        assert self.scales is not None
        image = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(b) for b in boxes]))
        flat = torch.cat(boxes)
        rois = torch.cat((image[:, None].to(flat.dtype).to(flat.device, non_blocking=True), flat), 1)[x.order]
        pooled = torch.cat(
            [
                roi_align(m, part, self.output_size, scale, self.sampling_ratio).to(maps[0].dtype)
                for m, part, scale in zip(maps, rois.split(x.counts), self.scales, strict=True)
            ]
        )
        return torch.empty_like(pooled).index_copy(0, x.order, pooled)

    def level_of(self, boxes: Tensor) -> Tensor:
        """Index of the pyramid level of each box. A box that is not finite gets any level; its features are NaN."""
        mapper = self.map_levels
        assert mapper is not None
        side = torch.sqrt(box_area(boxes))
        level = torch.floor(mapper.lvl0 + torch.log2(side / mapper.s0) + mapper.eps)
        return (torch.nan_to_num(level).clamp(mapper.k_min, mapper.k_max) - mapper.k_min).long()


def gathers(device: torch.device) -> bool:
    """Whether features are gathered there (`gather_rois`); else torchvision's kernel takes them level by level."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()


def sort_boxes(levels: dict[str, Tensor], pools: list[tuple[FastPool, list[Tensor]]]) -> list[Sorted]:
    """What each pool needs to know of its boxes (list of (n, 4) by image): one read by the host for all."""
    orders, counts = [], []
    for pool, boxes in pools:
        level, order = pool.level_of(torch.cat(boxes)).sort(stable=True)
        number = sum(n in pool.featmap_names for n in levels)
        orders.append(order)
        counts.append((level[:, None] == torch.arange(number, device=level.device)).sum(0))
    read = iter(torch.cat(counts).tolist())
    return [Sorted(levels, o, [next(read) for _ in range(len(c))]) for o, c in zip(orders, counts, strict=True)]


def gather_rois(
    pyramid: Pyramid, boxes: Tensor, level: Tensor, image: Tensor, size: tuple[int, int], samples: int
) -> Tensor:
    """RoIAlign (not aligned) of ``boxes`` (N, 4) in pixels of their level's map: float (N, C, *size), channels-last.

    A box that is not finite gives NaN features; torchvision reads outside its memory there.
    """
    height, width = pyramid.heights[level], pyramid.widths[level]
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    rows, row_weights = _taps(boxes[:, 1], extent[:, 1], height, size[0], samples)
    columns, column_weights = _taps(boxes[:, 0], extent[:, 0], width, size[1], samples)
    start = pyramid.starts[level] + image * height * width
    index = (start[:, None, None] + rows * width[:, None, None])[:, :, None, :, None] + columns[:, None, :, None, :]
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    taps = rows.shape[-1] * columns.shape[-1]
    weight = weight.reshape(-1, taps)
    used = weight != 0
    count = used.sum(1)
    pooled = F.embedding_bag(
        index.reshape(-1, taps)[used],
        pyramid.rows,
        count.cumsum(0) - count,
        mode="sum",
        per_sample_weights=weight[used],
    )
    return pooled.view(len(boxes), *size, pyramid.rows.shape[1]).permute(0, 3, 1, 2)


def _taps(start: Tensor, extent: Tensor, size: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Pixels and weights of each bin along one axis: int64 and float (N, bins, 2 * samples).

    The average of ``samples`` linear interpolations; neighbouring samples that share a pixel are merged, so that many
    weights are 0 and drop out.
    """
    step = extent[:, None, None] / bins
    offset = (torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5) / samples
    bin_ = torch.arange(bins, dtype=start.dtype, device=start.device)[None, :, None]
    at = start[:, None, None] + bin_ * step + offset * step
    last = (size - 1)[:, None, None]
    share = ((at >= -1.0) & (at <= last + 1)).to(at.dtype) / samples
    at = torch.minimum(at.clamp(min=0.0), last.to(at.dtype))
    low = torch.minimum(torch.nan_to_num(at).long(), last)
    high = torch.minimum(low + 1, last)
    part = at - low
    pixels = torch.stack((low, high), -1)
    weights = torch.stack(((1.0 - part) * share, part * share), -1)
    if samples == 2:
        weights = _merge(pixels, weights)
    return pixels.flatten(2), weights.flatten(2)


def _merge(pixels: Tensor, weights: Tensor) -> Tensor:
    """Weights (N, bins, 2, 2) with the second sample's moved to the first sample's pixels where they are the same."""
    (low0, high0), (low1, _) = pixels[:, :, 0].unbind(-1), pixels[:, :, 1].unbind(-1)
    (a0, b0), (a1, b1) = weights[:, :, 0].unbind(-1), weights[:, :, 1].unbind(-1)
    same = low0 == low1
    next_ = (high0 == low1) & ~same
    zero = torch.zeros_like(a0)
    a0 = a0 + torch.where(same, a1, zero)
    b0 = b0 + torch.where(same, b1, zero) + torch.where(next_, a1, zero)
    first = torch.stack((a0, b0), -1)
    second = torch.stack((torch.where(same | next_, zero, a1), torch.where(same, zero, b1)), -1)
    return torch.stack((first, second), 2)
