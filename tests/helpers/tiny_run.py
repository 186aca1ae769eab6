"""A guarded training in miniature, for tests of replay and diagnosis: real detector, guard, snapshots and tape."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from maskrcnn_coco.components import components
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.replay.case import Case, Rig
from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.replay.snapshot import take
from maskrcnn_coco.replay.tape import Tape, TapeEntry

SIZE = 64
CLASSES = 4


def sample(image_id: int, objects: int = 2) -> tuple[Tensor, dict[str, Any]]:
    """A picture with bright rectangles: a pure function of its id."""
    g = torch.Generator().manual_seed(image_id)
    image = torch.rand(3, SIZE, SIZE, generator=g) * 0.3
    boxes, labels, masks = [], [], []
    for _ in range(objects):
        x, y = (int(v) for v in torch.randint(2, SIZE - 34, (2,), generator=g))
        w, h = (int(v) for v in torch.randint(12, 32, (2,), generator=g))
        label = int(torch.randint(1, CLASSES, (1,), generator=g))
        image[label - 1, y : y + h, x : x + w] = 0.9
        mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
        mask[y : y + h, x : x + w] = 1
        boxes.append([x, y, x + w, y + h])
        labels.append(label)
        masks.append(mask)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE, dtype=torch.uint8),
        "image_id": image_id,
        "annotation_ids": torch.arange(objects) + image_id * 10,
    }
    return image, target


class Stem(nn.Module):
    """Two strided stages with frozen norms, and an FPN: the smallest backbone that has every part."""

    out_channels = 16

    def __init__(self, norm: Callable[[int], nn.Module] = FrozenBatchNorm2d) -> None:
        super().__init__()
        stage = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), norm(o), nn.ReLU())  # noqa: E731
        self.body = nn.ModuleDict({"layer1": stage(3, 12, 4), "layer2": stage(12, 16, 2), "layer3": stage(16, 24, 2)})
        self.fpn = FeaturePyramidNetwork([16, 24], 16)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body["layer1"](x)
        second = self.body["layer2"](x)
        return self.fpn(OrderedDict([("0", second), ("1", self.body["layer3"](second))]))


def tiny_model(*, norm: Callable[[int], nn.Module] = FrozenBatchNorm2d, anchors: Any = None) -> MaskRCNN:
    """A Mask R-CNN of about 100,000 parameters at 64 pixels: 20 ms a step on one core."""
    torch.manual_seed(0)
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import RPNHead

    generator = AnchorGenerator(anchors or ((16,), (32,)), ((0.5, 1.0, 2.0),) * 2)
    model = MaskRCNN(
        Stem(norm),
        None,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(16, generator.num_anchors_per_location()[0]),
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES),
        mask_head=MaskRCNNHeads(16, [16], 1),
        mask_predictor=MaskRCNNPredictor(16, 16, CLASSES),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        box_batch_size_per_image=32,
    )
    # Weights of a random net with identity norms shrink the signal; give the norms real statistics.
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.fill_(0.1)
    return model


@dataclass
class TinyRun:
    """The loop of `training.train_step`, without data files. ``spoil`` may change a batch (step, batch) in place."""

    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 0.01)
    )
    model: nn.Module = field(default_factory=tiny_model)
    kind: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_grad_norm: float = 10.0
    precision: str = "fp32"
    batch_size: int = 4
    accumulate: int = 1
    images: int = 24
    spoil: Callable[[int, Batch], None] | None = None
    before_step: Callable[[TinyRun, int], None] | None = None
    lr_at: Callable[[int], dict[str, float]] | None = None
    warmup: int = 0
    scale: float = 2.0**12
    settings: dict[str, Any] = field(default_factory=dict)
    snapshot_every: int = 4
    reference: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        self.model.train()
        self.optimizer = build_optimizer(
            self.model, kind=self.kind, momentum=self.momentum, weight_decay=self.weight_decay
        )
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale) if self.precision == "fp16" else None
        self.guard = Guard(
            self.model, self.optimizer, scaler=self.scaler, max_grad_norm=self.max_grad_norm, measure_every=2
        )
        self.ring, self.tape = Ring(capacity=5), Tape(64)
        self.history: list[StepRecord] = []
        device = torch.device("cpu")
        self.forward = Forward(self.model, device=device, precision=self.precision, seed=0)

    def make_batch(self, keys: list[SampleKey]) -> Batch:
        pairs = [sample(k.image_id) for k in keys]
        batch = Batch([i for i, _ in pairs], [t for _, t in pairs], list(keys))
        if self.spoil:
            self.spoil(keys[0].epoch, batch)
        return batch

    def batches(self, step: int) -> list[Batch]:
        made = []
        for micro in range(self.accumulate):
            first = (step * self.accumulate + micro) * self.batch_size
            # The key's epoch is the step here, so that `spoil` knows when it is asked.
            keys = [SampleKey(step, i % self.images, i % self.images) for i in range(first, first + self.batch_size)]
            made.append(self.make_batch(keys))
        return made

    def rates(self, step: int) -> dict[str, float]:
        if self.lr_at:
            return self.lr_at(step)
        up = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return {c: v * up for c, v in self.lr.items()}

    def until_alarm(self, steps: int = 40) -> Case:
        """Train until the guard sounds an alarm; the case is then as `response.build_case` makes it."""
        for step in range(steps):
            alarm, batches = self.step(step)
            if alarm is not None:
                return self.case(alarm, batches)
        raise AssertionError(
            f"no alarm in {steps} steps: {[(round(r.loss, 2), round(r.grad_norm, 1)) for r in self.history]}"
        )

    def step(self, step: int) -> tuple[Alarm | None, list[Batch]]:
        if step % self.snapshot_every == 0:
            self.ring.add(take(self.model, self.optimizer, self.scaler, step=step, epoch=0, guard=self.guard))
        rates = self.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["component"]]
        if self.before_step:
            self.before_step(self, step)
        batches = self.batches(step)
        record = self.guard.step(self.forward.begin(step), batches, step=step, micro_batches=True)
        keys = [b.keys for b in batches]
        self.tape.add(TapeEntry(step, 0, keys, rates, record.loss_scale, record.applied, record))
        self.history.append(record)
        return self.guard.alarm, batches

    def case(self, alarm: Alarm, batches: list[Batch]) -> Case:
        now = take(self.model, self.optimizer, self.scaler, step=alarm.step, epoch=0, guard=self.guard)
        config = {"lr": self.lr["backbone"], "head_lr_multiplier": 1.0, "max_grad_norm": self.max_grad_norm}
        config |= {"momentum": self.momentum, "weight_decay": self.weight_decay}
        settings = {"config": config, **self.settings}
        earlier = [s for s in self.ring.items if s.step <= alarm.step]
        return Case(alarm, now, earlier, list(self.tape), batches, self.history[-300:], settings, self.rig())

    def rig(self) -> Rig:
        return Rig(
            model=self.model,
            build_optimizer=lambda m: build_optimizer(
                m, kind=self.kind, momentum=self.momentum, weight_decay=self.weight_decay
            ),
            forward=Forward(nn.Identity(), device=torch.device("cpu"), precision=self.precision, seed=0).losses,
            components=components,
            make_batch=self.make_batch,
            precision=self.precision,
            max_grad_norm=self.max_grad_norm,
            reference=self.reference,
        )


def rates(**changed: float) -> dict[str, float]:
    """0.01 for every component but those named."""
    return {**dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 0.01), **changed}


def with_target(batch: Batch, image_id: int, **changes: Any) -> None:
    """Replace entries of one image's target, where that image is in the batch."""
    for position, key in enumerate(batch.keys):
        if key.image_id == image_id:
            batch.targets[position] = {**copy.copy(batch.targets[position]), **changes}


def alarm_at(step: int, symptom: Any = "loss_nonfinite") -> Alarm:
    return dataclasses.replace(Alarm(symptom, step, 0, step, "test"))
