"""torchvision's balanced sampler over all images of a batch, with one read by the host and the same random draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher


class Sample(NamedTuple):
    """Drawn elements. All places count over the images' elements one after the other.

    Attributes:
        indices: (N,) ascending places of everything drawn; ``sizes`` of them in each image.
        positives: (P,) ascending places *within ``indices``* of the positives; ``positive_sizes`` in each image.
        positive_indices, negative_indices: ascending places of the positives and of the negatives.
    """

    indices: Tensor
    sizes: list[int]
    positives: Tensor
    positive_sizes: list[int]
    positive_indices: Tensor
    negative_indices: Tensor


def draw(labels: Tensor, sizes: list[int], batch: int, fraction: float) -> Sample:
    """Draw up to ``batch`` elements an image, at most ``fraction`` of them positive.

    Draws the same elements as torchvision's `BalancedPositiveNegativeSampler` from the same generator state.

    Args:
        labels: (A,) of all images; ≥ 1 positive, 0 negative, < 0 ignored. sizes: elements of each image.
    """
    running, bounds = tally(labels, sizes)
    return pick(running, bounds.tolist(), batch, fraction)


def tally(labels: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """What `draw` has to know before it draws: int64 (2, A) and (2, B + 1), both of positives and negatives.

    The number of them up to and with each element, and before each image (and at the end): the one thing to read.
    """
    running = torch.stack((labels >= 1, labels == 0)).cumsum(1)
    starts = torch.tensor([0, *sizes]).cumsum(0).to(labels.device, non_blocking=True)
    return running, F.pad(running, (1, 0))[:, starts]


def pick(running: Tensor, bounds: Sequence[Sequence[int]], batch: int, fraction: float) -> Sample:
    """The draw itself, from what `tally` gave; its bounds as numbers."""
    positive_bounds, negative_bounds = bounds
    ranks: tuple[list[Tensor], list[Tensor]] = ([], [])
    taken: list[int] = []
    for i in range(len(positive_bounds) - 1):
        positives = positive_bounds[i + 1] - positive_bounds[i]
        negatives = negative_bounds[i + 1] - negative_bounds[i]
        wanted = min(positives, int(batch * fraction))
        taken.append(wanted)
        ranks[0].append(torch.randperm(positives, device=running.device)[:wanted] + positive_bounds[i])
        ranks[1].append(torch.randperm(negatives, device=running.device)[: batch - wanted] + negative_bounds[i])
    # The place of the element with rank r among its kind is where the running count first exceeds r.
    positive = torch.searchsorted(running[0], torch.cat(ranks[0]).sort().values, right=True)
    negative = torch.searchsorted(running[1], torch.cat(ranks[1]).sort().values, right=True)
    indices = torch.cat((positive, negative)).sort().values
    counts = [a + len(n) for a, n in zip(taken, ranks[1], strict=True)]
    return Sample(indices, counts, torch.searchsorted(indices, positive), taken, positive, negative)


class FastMatcher(Matcher):
    """`Matcher` whose low-quality matches are found without asking for their number."""

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Give every prediction that is some ground truth's best (ties included) its best match back, in place."""
        best = match_quality_matrix.amax(1, keepdim=True)
        wanted = (match_quality_matrix == best).any(0)
        matches.copy_(torch.where(wanted, all_matches, matches))
