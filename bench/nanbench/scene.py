"""A run before anything is wrong with it, and the places where a scenario may break it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nanbench.tiny import COMPONENTS, Sample, component_of, sample, tiny_detector
from nanbench.tiny_optimizers import OWN_OPTIMIZERS
from nanbench.tiny_others import with_keypoints

IMAGES, HELD_OUT = 24, 8
BATCH = 4
STEPS = 24
RATES = {
    "adamw": (3e-3, 0.01),
    "adam": (3e-3, 0.0),
    "nadam": (3e-3, 0.0),
    "adagrad": (0.01, 0.0),
    "rmsprop": (1e-3, 0.0),
    "adafactor": (0.02, 0.0),
    "rprop": (1e-3, 0.0),
    "adamax": (5e-3, 0.0),
    "radam": (0.01, 0.0),
    "lion": (1e-3, 0.0),
    "muon": (0.03, 0.0),
    "lars": (0.01, 0.0),
    "distance": (1.0, 0.0),
    "counted": (3e-3, 0.0),
}
"""Learning rate and weight decay at which each optimizer but SGD learns here."""
"""Planned steps: four epochs of six with a batch of 4."""


@dataclass(frozen=True)
class Setup:
    """What a clean run is made of. Every scenario has one, and is compared with the clean runs of the same one."""

    optimizer: str = "sgd"
    precision: str = "fp32"
    accumulate: int = 1
    norm: str = "frozen"
    ranks: int = 1
    warmup: int = 3
    batch: int = BATCH
    """Images of a step; the steps stay 24, so that a small batch sees each image less often."""
    model: str = "mask"
    way: str = "train"
    """The way into this project: "train" (a data set in memory), "files" (a COCO folder), "guard" or "attach" (a loop
    of the caller's own, with ``diagnose=True``), "see" (attached, the loss made outside of the model), "pair" (two
    networks that step in turn, a guard each)."""

    @property
    def name(self) -> str:
        """Short and unique."""
        parts = [self.optimizer, self.precision, f"acc{self.accumulate}", self.norm]
        parts += [f"warmup{self.warmup}"] if self.warmup != 3 else []
        parts += [f"batch{self.batch}"] if self.batch != BATCH else []
        parts += [self.model] if self.model != "mask" else []
        parts += [self.way] if self.way != "train" else []
        return "-".join(parts + ([f"ranks{self.ranks}"] if self.ranks > 1 else []))


@dataclass
class Live:
    """A run under way, as a fault sees it between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    step: int

    def parameter(self, name: str) -> Tensor:
        """One weight by name."""
        return self.model.get_parameter(name)

    def state_of(self, name: str) -> dict[str, Any]:
        """Optimizer state of one weight."""
        return self.optimizer.state[self.parameter(name)]


class Pictures(Dataset):
    """The training images; each item is a private copy, after ``scene.draw`` had its way with it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __len__(self) -> int:
        return len(self.scene.samples)

    def __getitem__(self, index: int) -> Sample:
        if self.scene.draw is not None:
            return self.scene.draw(index)
        image, target = self.scene.samples[index]
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}


@dataclass
class Scene:
    """A clean run; a scenario's function changes it before it starts. Every system trains what is in here."""

    setup: Setup
    seed: int
    model: nn.Module
    samples: list[Sample]
    held_out: list[Sample]
    lr: float = 0.03
    multipliers: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 1.0))
    warmup: int = 3
    max_grad_norm: float = 10.0
    momentum: float = 0.9
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    """More keywords for the optimizer's class: eps, betas, dampening."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More settings of this project's run."""
    weight_decay: float = 1e-4
    before: dict[int, list[Callable[[Live], None]]] = field(default_factory=dict)
    on_resume: Callable[[dict[str, Any]], None] | None = None
    """Changes the checkpoint of step 12 (``model``, ``optimizer``, ``scaler``) that the run is resumed from."""
    backups_too: bool = False
    """`on_resume` changes the older checkpoints as well."""
    undivided: Callable[[int], bool] | None = None
    """Steps at which the loop forgets to divide the micro-batches' losses by their number."""
    loop: set[str] = field(default_factory=set)
    """What a caller's own loop gets wrong: "keeps gradients", "steps scaled", "undivided", "clips scaled"."""
    after_backward: Callable[[Live], None] | None = None
    """What a caller's own loop does with the gradients before it steps."""
    around_step: Callable[[Live, Callable[[], Any]], None] | None = None
    """What a caller's own loop does around its step; by default it steps."""
    folder: Any = None
    """Where the COCO files of "files" lie."""
    draw: Callable[[int], Any] | None = None
    """In place of the samples: what the data set hands out at a position, whatever its form."""
    active: bool = True
    """False during the final evaluation: faults in hooks rest."""
    fired: set[int] = field(default_factory=set)
    step: int = 0
    """The planned step under way, for faults that live in hooks."""

    ids: list[int] = field(default_factory=list)
    """The image ids, as they are before a scenario touches the samples."""
    also_bad: list[int] = field(default_factory=list)
    """Positions of further images that a scenario breaks."""

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return IMAGES // self.setup.batch

    @property
    def epochs(self) -> int:
        """So many that the steps are `STEPS`."""
        return STEPS // self.per_epoch

    @property
    def bad_ids(self) -> list[int]:
        """Ids of all images that are broken."""
        return sorted(self.ids[p] for p in {self.culprit, *self.also_bad})

    @property
    def culprit(self) -> int:
        """The position of the image that the data faults break: another one for each seed."""
        return (7 + 5 * self.seed) % IMAGES

    @property
    def bad_id(self) -> int:
        """Its image id."""
        return self.ids[self.culprit]

    def data(self) -> Pictures:
        """The training data as a map-style data set."""
        return Pictures(self)

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate per component: linear warm-up, then a cosine to a hundredth."""
        if step < self.warmup:
            share = 1e-3 + (1 - 1e-3) * step / self.warmup
        else:
            done = (step - self.warmup) / max(1, STEPS - self.warmup)
            share = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return {c: self.lr * share * m for c, m in self.multipliers.items()}

    def at(self, step: int, change: Callable[[Live], None]) -> None:
        """Have ``change`` happen once, between steps ``step`` - 1 and ``step``."""
        self.before.setdefault(step, []).append(change)

    def fire(self, live: Live) -> None:
        """What a system calls right before each planned step: faults that are due happen, once."""
        self.step = live.step
        if live.step in self.fired:
            return
        self.fired.add(live.step)
        for change in self.before.get(live.step, []):
            change(live)

    def order(self, step: int) -> list[list[int]]:
        """Image positions of each micro-batch of a planned step, for the peers' loops."""
        batch = self.setup.batch
        g = torch.Generator().manual_seed(self.seed * 1000 + step // self.per_epoch)
        permutation = torch.randperm(IMAGES, generator=g).tolist()
        first = step % self.per_epoch * batch
        mine = permutation[first : first + batch]
        size = batch // self.setup.accumulate
        return [mine[i : i + size] for i in range(0, batch, size)]


def clean_scene(setup: Setup, seed: int) -> Scene:
    """A healthy run: random weights and image ids from ``seed``."""
    scene = Scene(
        setup,
        seed,
        tiny_detector(setup.model, seed, setup.norm),
        [sample(1000 * (seed + 1) + i) for i in range(IMAGES)],
        [sample(900_000 + i) for i in range(HELD_OUT)],
        warmup=setup.warmup,
    )
    if setup.model == "keypoint":
        scene.samples = [(i, with_keypoints(t)) for i, t in scene.samples]
        scene.held_out = [(i, with_keypoints(t)) for i, t in scene.held_out]
    scene.ids = [int(t["image_id"]) for _, t in scene.samples]
    if setup.model == "ssd":
        scene.lr = 3e-3
    if setup.optimizer in RATES:
        scene.lr, scene.weight_decay = RATES[setup.optimizer]
    return scene


def make_optimizer(scene: Scene, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The scene's optimizer over ``groups``, whose learning rates and weight decays are set."""
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "nadam": torch.optim.NAdam,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "adafactor": torch.optim.Adafactor,
        "rprop": torch.optim.Rprop,
        "adamax": torch.optim.Adamax,
        "radam": torch.optim.RAdam,
        **OWN_OPTIMIZERS,
    }
    kind = scene.setup.optimizer
    if kind == "rprop":
        groups = [{k: v for k, v in g.items() if k != "weight_decay"} for g in groups]
    more = {"momentum": scene.momentum} if kind == "sgd" else {}
    return kinds[kind](groups, **more, **scene.optimizer_options)


def groups_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Component → trainable parameters."""
    groups: dict[str, list[nn.Parameter]] = {c: [] for c in COMPONENTS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[component_of(name)].append(parameter)
    return groups


def plain_copy(state: Any) -> Any:
    """A deep copy of a state dict."""
    return copy.deepcopy(state)


def setup_from(values: dict[str, Any]) -> Setup:
    """A setup from its plain values."""
    return Setup(**values)
