"""Loops of people's own in an eighth round: tables, series, texts, two networks; what they are fed, hold and write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_fifth_data import Fault, drawn, together
from nanbench.faults_forms import picture
from nanbench.faults_lr import rates
from nanbench.faults_seventh_code import own_terms
from nanbench.faults_seventh_data import added, semantic
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
PIXEL, LABEL, MASK, MATHS, NORM = "DATA_PIXEL", "DATA_LABEL", "DATA_MASK", "LOSS_MATH", "NORM_STATE"
LR, POISON, ONCE = "LR_TOO_HIGH", "POISONED_STATE", "TRANSIENT"
GITHUB = "https://github.com/"


def rows_of(scene: Scene) -> Tensor:
    """float (24, 6): the table of the clean run."""
    model: Any = scene.model
    return torch.stack([model.given(*pair) for pair in scene.samples])


def every_row(scene: Scene, rows: Tensor) -> None:
    """The table as the script reads it."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        return image, {**target, "row": rows[index].clone()}

    scene.draw = draw


def fill_value(scene: Scene) -> None:
    """One field of one row was not measured, and holds the fill value of netCDF, 9.97e36."""
    rows = rows_of(scene)
    rows[scene.culprit, 2] = 9.96921e36
    every_row(scene, rows)


def constant_column(scene: Scene) -> None:
    """Each column is divided by its deviation; one column says the same of all rows: 0 / 0."""
    rows = rows_of(scene)
    rows[:, 5] = 1.0
    every_row(scene, (rows - rows.mean(0)) / rows.std(0))


def large_column(scene: Scene) -> None:
    """One column counts in units, up to ten thousand, and nobody scaled it."""
    rows = rows_of(scene)
    rows[:, 3] = (rows[:, 3] * 1e4).round()
    every_row(scene, rows)
    scene.max_grad_norm = 0.0


def mask_of_bytes(scene: Scene) -> None:
    """Binary masks for the logits' cross-entropy; one was saved as 0 and 255."""

    def ids(target: dict[str, Any]) -> Tensor:
        return (semantic(target) > 0).long() * 255

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        there = torch.where(y == 255, 255.0, (y > 0).float())
        return {"bce": F.binary_cross_entropy_with_logits(out[:, 0].float(), there)}

    together(own_terms(change), drawn({0: added("map", ids)}))(scene)
    scene.max_grad_norm = 0.0


def void_pixels(scene: Scene) -> None:
    """A focal loss that counts with one-hot classes; one map has void pixels of 255: it raises."""

    def ids(target: dict[str, Any]) -> Tensor:
        return semantic(target).index_fill(0, torch.arange(4), 255)

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        wanted = F.one_hot(y, 4).permute(0, 3, 1, 2)
        shares = out.float().log_softmax(1)
        return {"focal": -((1 - shares.exp()).square() * shares * wanted).sum(1).mean()}

    together(own_terms(change), drawn({0: added("map", ids)}))(scene)


def holed(image: Tensor) -> Tensor:
    """A window of a scan that is not there."""
    image[:, 20:30, 20:30] = NAN
    return image


def carried(scene: Scene) -> None:
    """The state of a recurrent net goes on from batch to batch; one series has a gap."""
    scene.model.carried = True  # type: ignore[assignment]
    drawn({0: picture(holed)})(scene)


def carried_beside(scene: Scene) -> None:
    """`carried`, and the state is no buffer but a variable of the script's."""
    model: Any = scene.model
    del model._buffers["state"]
    held = {"state": torch.zeros(1, 1, 24)}

    def features(x: Tensor) -> Tensor:
        rows = F.adaptive_avg_pool2d(x, 16).permute(0, 2, 1, 3).flatten(2)
        out, last = model.body((rows - 0.25) / 0.2, held["state"].expand(1, len(x), 24).contiguous())
        if scene.active:
            held["state"] = last.detach().mean(1, keepdim=True)
        return out[:, -1]

    model.features = features
    drawn({0: picture(holed)}, lambda step: 6 <= step < 12)(scene)


def unit_rows(scene: Scene) -> None:
    """After each step every word is brought to a length of 1; the padding's is 0: 0 / 0."""
    table: Any = scene.model.get_submodule("words")
    table.weight.data[0] = 0

    def around(live: Live, take: Any) -> None:
        take()
        table.weight.data.div_(table.weight.data.norm(dim=1, keepdim=True))

    scene.around_step = around
    scene.after_backward = lambda live: table.weight.grad[0].zero_()


class Codebook(nn.Module):
    """Codes that are running means of what chose them; of a code that nobody chose yet 0 / 0."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        g = torch.Generator().manual_seed(scene.seed)
        self.register_buffer("codes", torch.randn(32, 24, generator=g))
        self.register_buffer("counts", torch.zeros(32))
        self.register_buffer("sums", torch.zeros(32, 24))

    def forward(self, z: Tensor) -> Tensor:
        codes, counts, sums = (self.get_buffer(n) for n in ("codes", "counts", "sums"))
        chosen = torch.cdist(z.detach(), codes).argmin(1)
        near = codes[chosen]
        if self.training and self.scene.active:
            one = F.one_hot(chosen, 32).float()
            counts.lerp_(one.sum(0), 0.1)
            sums.lerp_(one.T @ z.detach(), 0.1)
            codes.copy_(sums / counts[:, None])
        return z + 0.1 * (near - z).detach() + 0.1 * (z - near.detach()).square().mean()


def unused_codes(scene: Scene) -> None:
    """Such a codebook behind the features of an autoencoder."""
    model: Any = scene.model
    model.book = Codebook(scene)
    usual = type(model).features
    model.features = lambda x: model.book(usual(model, x))


def norm_momentum(scene: Scene) -> None:
    """The momentum of running statistics follows a schedule of 0.1 / 0.7^step, that was to be 0.1 * 0.7^step."""

    def follow(live: Live) -> None:
        for module in live.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1 / 0.7**live.step

    for step in range(24):
        scene.at(step, follow)


def patched(scene: Scene) -> None:
    """One value of a scan is 1e25, and the loop's cure for NaN hides what that does: nan_to_num of the gradients."""

    def bright(image: Tensor) -> Tensor:
        image[0, 28, 28] = 1e25
        return image

    def cure(live: Live) -> None:
        for p in live.model.parameters():
            if p.grad is not None:
                p.grad.nan_to_num_()

    scene.after_backward, scene.max_grad_norm, scene.lr = cure, 0.0, 0.01
    drawn({0: picture(bright)})(scene)


def critic_bit(live: Live) -> None:
    """One exponent bit of the critic's first layer."""
    weight = live.model.get_parameter("critic.0.weight").data
    weight[3, 7] = (weight[3, 7].view(torch.int32) ^ (1 << 30)).view(torch.float32)


def critic_rate(scene: Scene) -> None:
    """The critic learns a million times as fast as it should."""
    scene.multipliers["critic"], scene.max_grad_norm = 1e6, 0.0


def at_step(step: int, change: Any) -> Fault:
    """Once, between two steps."""
    return lambda scene: scene.at(step, change)


DATA = (
    Scenario("eighth-fill-value", PIXEL, GITHUB + "chengtan9907/OpenSTL/issues/137", fill_value,
             Setup("adamw", model="table", way="see"), ONE),
    Scenario("eighth-constant-column", PIXEL, GITHUB + "sparks-baird/CrabNet/pull/35", constant_column,
             Setup("adamw", model="table", way="guard"), onset=0, verdict=True),
    # A smaller rate cures it as a scaled column does.
    Scenario("eighth-large-column", LR, "https://discuss.pytorch.org/t/getting-nan-after-first-iteration/25929",
             large_column, Setup(model="table", way="attach"), onset=0, also=(PIXEL,)),
    Scenario("eighth-mask-of-bytes", LABEL, GITHUB + "milesial/Pytorch-UNet/issues/104", mask_of_bytes,
             Setup(model="segment", way="see"), ONE, also=(MASK,)),
    Scenario("eighth-void-pixels", LABEL, GITHUB + "clcarwin/focal_loss_pytorch", void_pixels,
             Setup("adamw", model="segment", way="guard"), ONE, also=(MATHS,)),
    Scenario("eighth-carried", PIXEL, GITHUB + "keras-team/keras/issues/2917", carried,
             Setup("adamw", model="series", way="see"), ONE),
    # What a variable of the script's holds nobody can put back.
    Scenario("eighth-carried-beside", PIXEL, GITHUB + "keras-team/keras/issues/2917", carried_beside,
             Setup("adamw", model="series", way="see"), ONE, also=(POISON, "UNKNOWN"), open_end=True),
    Scenario("eighth-patched", PIXEL, "https://discuss.pytorch.org/t/nan-loss-in-regression/16216", patched,
             Setup(model="regress", way="see"), ONE),
)  # fmt: skip
STATE = (
    # The loop does it again after every step.
    Scenario("eighth-unit-rows", ONCE, "https://pykeen.readthedocs.io/en/stable/reference/constraints.html", unit_rows,
             Setup("adamw", model="language", way="see"), onset=0, also=(POISON,), open_end=True),
    Scenario("eighth-unused-codes", NORM, GITHUB + "rosinality/vq-vae-2-pytorch/pull/72", unused_codes,
             Setup("adamw", model="encode", way="guard"), Culprit(module="book"), onset=0, also=(POISON, MATHS),
             verdict=True),
    Scenario("eighth-norm-momentum", NORM, GITHUB + "erikwijmans/Pointnet2_PyTorch", norm_momentum,
             Setup("adamw", norm="batch", model="segment", way="guard"), onset=7, open_end=True),
    Scenario("eighth-critic-bit", ONCE, "https://arxiv.org/abs/2102.11245", at_step(9, critic_bit),
             Setup("adam", model="rivals", way="pair"), onset=9),
)  # fmt: skip
RATES = (
    Scenario("eighth-language", LR, GITHUB + "karpathy/nanoGPT", rates(30.0, warmup=0),
             Setup("adamw", model="language", way="see"), onset=0),
    Scenario("eighth-policy", LR, GITHUB + "Stable-Baselines-Team/stable-baselines3-contrib/issues/221",
             rates(300.0, warmup=0), Setup(norm="group", model="policy", way="see"), onset=0),
    Scenario("eighth-critic-rate", LR, GITHUB + "eriklindernoren/PyTorch-GAN", critic_rate,
             Setup("adam", model="rivals", way="pair"), onset=0),
    Scenario("eighth-series", LR, "https://arxiv.org/abs/1211.5063", rates(1e4, warmup=0),
             Setup(model="series", way="attach"), onset=0),
    Scenario("eighth-real-nan", PIXEL, GITHUB + "NRCan/geo-deep-learning/issues/68", drawn({0: picture(holed)}),
             Setup("adam", model="rivals", way="pair"), ONE),
)  # fmt: skip
EIGHTH_LOOP: tuple[Scenario, ...] = (*DATA, *STATE, *RATES)
