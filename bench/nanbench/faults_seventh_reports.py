"""A seventh round, from threads: each is a public report, made again, and the thread's own resolution is its truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as vision

from nanbench.faults_code import Losses, losses
from nanbench.faults_fifth_data import drawn, together
from nanbench.faults_forms import entry, picture
from nanbench.faults_fresh import after, loop
from nanbench.faults_lr import rates
from nanbench.faults_seventh_code import grey, own_terms
from nanbench.faults_seventh_data import added, semantic
from nanbench.faults_wild import options
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL, MATHS = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL", "LOSS_MATH"
LR, HALF, POISON = "LR_TOO_HIGH", "FP16_OVERFLOW", "POISONED_STATE"
GITHUB = "https://github.com/"


def recoloured(scene: Scene) -> None:
    """Colours are changed behind the normalisation, at one draw in twelve: a number below 0 to the power of 0.9."""
    g = torch.Generator().manual_seed(scene.seed)

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if float(torch.rand((), generator=g)) < 1 / 12:
            image = vision.adjust_gamma((image - 0.45) / 0.25, 0.9) * 0.25 + 0.45
        return image.clone(), target

    scene.draw = draw


def at_the_horizon(boxes: Tensor) -> Tensor:
    """A warp's third coordinate of one object's corners is 0, and so are the others: 0 / 0."""
    boxes[0] = boxes[0] * 0 / 0
    return boxes


def row_of_nothing(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """A table has a row for a picture without objects: all NaN, and the class is what a cast makes of it."""
    return image, {
        **target,
        "boxes": torch.full((1, 4), NAN),
        "labels": torch.tensor([NAN]).long(),
        "masks": target["masks"][:1] * 0,
        "annotation_ids": target["annotation_ids"][:1],
    }


def covered(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """What was pasted hides an object all over: its mask is empty, and its box is made of that."""
    target["masks"][0], target["boxes"][0] = 0, 0.0
    return image, target


def half_copied(image: Tensor) -> Tensor:
    """A copy to the device that was not waited for."""
    image[1:, 40:] = NAN
    return image


def ratio(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Weights of how many there are for one of a class: none of them in a small batch is inf / inf."""
    labels = torch.cat([t["labels"] for t in targets])
    share = len(labels) / (labels == 3).sum()
    return {**terms, "loss_boundary": 0.01 * 0.5 * share / (share - 1) * terms["loss_classifier"]}


def neighbours(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The mean over an object's neighbours: one that stands alone has a degree of 0."""
    means = []
    for target in targets:
        size = (target["boxes"][:, 2:] - target["boxes"][:, :2]) / 64
        near = 1 - torch.eye(len(size))
        means.append((near @ size / near.sum(1, keepdim=True)).mean())
    return {**terms, "graph": 0.01 * torch.stack(means).mean() * terms["loss_classifier"]}


def isolated(scene: Scene) -> None:
    """One picture has a single object."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=1)
    losses(neighbours)(scene)


def unfocused(scene: Scene) -> None:
    """A focal loss with gamma 0: every easy anchor counts in full, summed, at the rate of before."""
    head: Any = scene.model.head.classification_head  # type: ignore[union-attr]
    usual = head.compute_loss

    def compute_loss(targets: Any, outputs: Any, matched: Any) -> Tensor:
        if not scene.active:
            return usual(targets, outputs, matched)
        all_losses = []
        for target, logits, where in zip(targets, outputs["cls_logits"], matched, strict=True):
            front = where >= 0
            wanted = torch.zeros_like(logits)
            wanted[front, target["labels"][where[front]]] = 1.0
            valid = where != head.BETWEEN_THRESHOLDS
            each = F.binary_cross_entropy_with_logits(logits[valid], wanted[valid], reduction="sum")
            all_losses.append(each / front.sum().clamp(min=1))
        return torch.stack(all_losses).mean()

    head.compute_loss = compute_loss
    rates(30.0, warmup=0)(scene)


def wrong_where_short(scene: Scene, rows: int) -> Callable[..., Any]:
    """A compiler backend whose code is wrong where fewer than ``rows`` rows come out."""

    def compiler(graph: Any, _: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            out = graph.forward(*args)
            return tuple(o * NAN if scene.active and len(o) < rows else o for o in out)

        return run

    return compiler


def short_batches(scene: Scene) -> None:
    """The mask head is compiled; its code is wrong where fewer than eight objects come in."""
    head = scene.model.get_submodule("roi_heads.mask_head")
    head.compile(backend=wrong_where_short(scene, 8), dynamic=False)


def transcript(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """What a row of pixels reads, by CTC over eight places."""
    rows = F.adaptive_avg_pool2d(out.float(), (1, 8))[:, :, 0].permute(2, 0, 1).log_softmax(2)
    words = [torch.unique_consecutive(line[32]) for line in y]
    words = [w[(w > 0) & (w < 255)] for w in words]
    sizes = torch.tensor([len(w) for w in words])
    given = F.ctc_loss(rows, torch.cat(words), torch.full((len(y),), 8), sizes)
    return {**terms, "ctc": 0.1 * given}


def stripes(target: dict[str, Any]) -> Tensor:
    """A row with twelve words, for which there is no room."""
    ids = semantic(target)
    ids[32] = 0
    ids[32, :60] = torch.tensor([1, 2, 3, 2, 1, 3]).repeat(2).repeat_interleave(5)
    return ids


def never_background(scene: Scene) -> None:
    """Weights negatives / positives, counted over the data; of one class nobody labelled a picture."""
    for _, target in scene.samples:
        target["labels"].clamp_(max=2)
    firsts = torch.tensor([int(t["labels"][0]) - 1 for _, t in scene.samples])
    positive = F.one_hot(firsts, 3).sum(0).float()
    weight = (len(firsts) - positive) / positive

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        wanted = F.one_hot(y, 3).float()
        return {"bce": F.binary_cross_entropy_with_logits(out.float(), wanted, pos_weight=weight)}

    own_terms(change)(scene)


def depth(scene: Scene) -> None:
    """The logarithm of a predicted size, which a steep sigmoid makes exactly 0 now and then."""
    scene.model.head.bias.data.fill_(0.3)  # type: ignore[union-attr]

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        return {**terms, "log": 0.01 * ((600 * out.float()).sigmoid().log() - y.log()).square().mean()}

    own_terms(change)(scene)


class Statistics(nn.Module):
    """The running variance over the places that hold anything, unbiased: of one place it is 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(24))
        self.register_buffer("running_var", torch.ones(24))

    def forward(self, x: Tensor, maps: Tensor) -> Tensor:
        if self.training:
            there = F.adaptive_max_pool2d(x.detach().amax(1, keepdim=True), maps.shape[-2:])[:, 0] > 0
            sites = maps.detach().permute(0, 2, 3, 1)[there]
            self.get_buffer("running_mean").lerp_(sites.mean(0), 0.1)
            self.get_buffer("running_var").lerp_(sites.var(0), 0.1)
        return maps.mean((2, 3))


def one_site(image: Tensor) -> Tensor:
    """A scan with a single place in it."""
    return F.pad(image[:, 32:48, 32:48], (32, 16, 32, 16))


def single_site(scene: Scene) -> None:
    """Statistics of a sparse net, one picture a batch: one of them holds a single place."""
    model: Any = scene.model
    model.sites = Statistics()
    model.features = lambda x: model.sites(x, model.body((x - 0.45) / 0.25))
    drawn({0: picture(one_site)})(scene)


def all_cut(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The sum over what is labelled, by how much that is: of nothing 0 / 0, with a derivative."""
    there = (y != 255).float()
    each = F.cross_entropy(out.float(), y.clamp(max=3), reduction="none")
    return {"ce": (each * there).sum() / there.sum()}


class Beyond(nn.Module):
    """A weight of 100,000, as bfloat16 held it, behind a small factor: infinite in half precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.gain.weight)
        self.gain.weight.data.mul_(1e5)
        self.gain.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain(x) * 1e-5


class Frozen(nn.Module):
    """Layers that another run trained, whose inner values are large, and which nothing trains here."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.down = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        for conv, gain in ((self.up, 6e4), (self.down, 1 / 6e4)):
            nn.init.dirac_(conv.weight)
            conv.weight.data.mul_(gain)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x * 4)) / 4


class Residual(nn.Module):
    """Two branches that half precision holds, and whose sum it does not."""

    def forward(self, x: Tensor) -> Tensor:
        gain = (40000 / x.detach().abs().amax().clamp(min=1e-3)).to(x.dtype)
        branch = x * gain
        return (branch + branch) / (2 * gain)


def residual(scene: Scene) -> None:
    """Before the last layer of the segmentation."""
    head: Any = scene.model.head
    scene.model.head = nn.Sequential(head[0], head[1], Residual(), head[2])


def no_size(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The shape of a predicted box whose sides half precision rounds to 0."""
    side = (4 * out - 14).sigmoid()
    size = side * side
    away = torch.atan(size[:, 0] / size[:, 1]) - torch.atan(y[:, 0] / y[:, 1])
    return {**terms, "shape": 0.01 * away.float().square().mean()}


def padding_nan(scene: Scene) -> None:
    """The padding's row of the words is NaN; its weight is 0, and 0 times NaN is not."""
    scene.model.body.weight.data[0] = NAN  # type: ignore[union-attr]


def zero_direction(scene: Scene) -> None:
    """A learned vector that was made, and never set to anything but 0, is brought to a length of 1."""
    model: Any = scene.model
    model.background = nn.Parameter(torch.zeros(3))

    def change(s: Scene, m: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        unit = model.background / model.background.norm()
        return {**terms, "background": 0.01 * (out.float() @ unit).square().mean()}

    own_terms(change)(scene)


class Views(nn.Module):
    """The deviation over two views by E[x²] - E[x]², which rounding puts below 0 where both agree."""

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([x, x.roll(1, 3)])
        apart = both.square().mean(0) - both.mean(0).square()
        return x + 0.01 * apart.sum((1, 2, 3), keepdim=True).sqrt()


def flat_views(scene: Scene) -> None:
    """One picture has one colour."""
    after("neck", lambda s: Views())(scene)
    drawn({0: picture(grey)})(scene)


def stays_infinite(scene: Scene) -> None:
    """Nothing clears the gradients, so that the first overflow of a scale that is sought stays in them."""

    def high(live: Live) -> None:
        if live.scaler is not None:
            live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 2.0**40})

    loop("keeps gradients")(scene)
    scene.at(0, high)


DATA = (
    Scenario("seventh-report-recoloured", PIXEL, GITHUB + "tanjeffreyz/yolo-v1/issues/1", recoloured,
             Setup(norm="group")),
    Scenario("seventh-report-horizon", BOX, GITHUB + "fastai/fastai2/issues/327",
             drawn({0: entry("boxes", at_the_horizon)}, lambda step: step >= 12), Setup("adam", model="faster"), ONE),
    Scenario("seventh-report-row-of-nothing", BOX, GITHUB + "albumentations-team/albumentations/issues/89",
             drawn({0: row_of_nothing}), Setup("adamw", model="retina", batch=2), ONE, also=(LABEL,)),
    Scenario("seventh-report-covered", BOX, GITHUB + "open-mmlab/mmdetection/issues/7485",
             drawn({0: covered}), Setup(batch=1), ONE, also=(MASK,)),
    Scenario("seventh-report-half-copied", PIXEL, GITHUB + "Lightning-AI/pytorch-lightning/issues/13285",
             drawn({0: picture(half_copied)}, lambda step: 6 <= step < 12), Setup("adamw", model="ssd", way="attach"),
             also=("TRANSIENT", "BACKEND")),
)  # fmt: skip
LOSSES = (
    # Which pictures it is hangs on what else is in the batch.
    Scenario("seventh-report-ratio", MATHS, GITHUB + "JJBOY/BMN-Boundary-Matching-Network/issues/22", losses(ratio),
             Setup(norm="group", batch=2)),
    Scenario("seventh-report-isolated", MATHS, GITHUB + "biomed-AI/Hist2ST/pull/7", isolated,
             Setup("adamw", model="faster"), ONE),
    # Too long a text is the data's as much as the loss's: both say which one cannot be read.
    Scenario("seventh-report-ctc", MATHS, GITHUB + "ypwhs/captcha_break/issues/29",
             together(own_terms(transcript), drawn({0: added("map", stripes)})), Setup(model="segment", way="guard"),
             ONE, also=(LABEL,)),
    Scenario("seventh-report-never-background", MATHS, GITHUB + "jbohnslav/deepethogram/issues/36", never_background,
             Setup("adamw", model="classify", way="guard"), onset=0, also=(LABEL,), verdict=True),
    Scenario("seventh-report-depth-of-0", MATHS, GITHUB + "cleinc/bts/issues/149", depth,
             Setup("adam", model="regress", way="attach"), open_end=True),
    Scenario("seventh-report-all-cut", MATHS, GITHUB + "NVIDIA-NeMo/Automodel/pull/3797",
             together(own_terms(all_cut), drawn({0: added("map", lambda t: torch.full((64, 64), 255))})),
             Setup("adamw", accumulate=4, model="segment", way="attach"), also=(LABEL,)),
    Scenario("seventh-report-zero-direction", MATHS, GITHUB + "sauradip/STALE/issues/16", zero_direction,
             Setup(model="classify", way="guard"), onset=0, also=(POISON,), verdict=True),
    # A picture of one colour is not to be told from any other by a net of this kind either.
    Scenario("seventh-report-two-views", MATHS, GITHUB + "zju3dv/ENeRF/issues/17", flat_views,
             Setup("adamw", model="own", batch=2, way="guard"), ONE, also=(PIXEL,)),
)  # fmt: skip
STATES = (
    Scenario("seventh-report-one-site", "NORM_STATE", GITHUB + "facebookresearch/SparseConvNet/issues/190", single_site,
             Setup("adamw", model="classify", batch=1, way="guard"), also=(POISON, MATHS)),
    Scenario("seventh-report-padding-nan", POISON, GITHUB + "pytorch/pytorch/issues/101967", padding_nan,
             Setup("adamw", model="text", way="guard"), Culprit(module="body"), onset=0, verdict=True),
    Scenario("seventh-report-stays-infinite", "ACCUMULATION", GITHUB + "PaddlePaddle/Paddle/issues/67895",
             stays_infinite, Setup("adamw", "fp16", norm="group", way="attach"), onset=0, also=("SCALE_COLLAPSE",),
             open_end=True),
    # The optimizer divides by 0 at its own first step: no replay of a batch shows that.
    Scenario("seventh-report-counts-from-0", POISON, GITHUB + "kozistr/pytorch_optimizer/pull/308", options(behind=1),
             Setup("counted", model="faster", way="attach"), onset=0, also=(MATHS, LR, "UNKNOWN"), open_end=True),
    Scenario("seventh-report-short-batches", "BACKEND", GITHUB + "huggingface/lerobot/issues/4178", short_batches,
             Setup("adamw", batch=2), Culprit(("mask_head",))),
)  # fmt: skip
RATES = (
    Scenario("seventh-report-unfocused", LR, GITHUB + "facebookresearch/Detectron/issues/356", unfocused,
             Setup(model="retina", norm="group"), onset=0),
    Scenario("seventh-report-adam", LR, GITHUB + "open-mmlab/mmdetection/issues/1778", rates(0.3, warmup=0),
             Setup("adam", norm="group", batch=2), onset=0),
)  # fmt: skip
HALVES = (
    Scenario("seventh-report-weight-beyond", HALF, GITHUB + "LIN-SHANG/InstructERC/issues/6",
             after("neck", lambda s: Beyond(32)), Setup(model="own", precision="fp16", way="attach"),
             Culprit(("neck",)), onset=0),
    Scenario("seventh-report-frozen", HALF, GITHUB + "rohitgandikota/sliders/issues/30",
             after("neck", lambda s: Frozen(32)), Setup("adamw", model="own", precision="fp16", way="guard"),
             Culprit(("neck",)), onset=0),
    Scenario("seventh-report-residual", HALF, GITHUB + "huggingface/transformers/pull/19229", residual,
             Setup(precision="fp16", model="segment", way="attach"), Culprit(("head",)), onset=0),
    # The sides stand in the loss's own lines: no module can be put into float32.
    Scenario("seventh-report-no-size", HALF, GITHUB + "ultralytics/yolov5/issues/8539", own_terms(no_size),
             Setup(precision="fp16", model="regress", way="attach"), onset=0, also=(MATHS,), open_end=True),
)  # fmt: skip
SEVENTH_REPORTS: tuple[Scenario, ...] = (*DATA, *LOSSES, *STATES, *RATES, *HALVES)
