"""The ways in: each runs one fine-tuning and gives back what was said, when, and how it ended."""

from __future__ import annotations

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nanbench.tiny import tiny_model
from torch import nn

from maskrcnn_coco import Config, FindingWarning, Guard, train, train_one_epoch
from maskrcnn_coco.config.settings import Config as Settings
from maskrcnn_coco.errors import DataError, GuardStop
from maskrcnn_coco.evaluation.ceiling import ceiling_of
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.evaluation.readings import mask_readings, matching_of
from maskrcnn_coco.findings.facts import Facts
from maskrcnn_coco.findings.judge import judge
from silent.scene import HEIGHT, WIDTH, Scene, small_model, write_coco


@dataclass
class Said:
    """One finding as the user meets it."""

    code: str
    what: str
    moment: str
    severity: str
    message: str
    fix: str


@dataclass
class Outcome:
    """What one run said; ``error``: it was refused before its first step."""

    said: list[Said] = field(default_factory=list)
    error: str = ""
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


Way = Callable[[Path], Outcome]


def timed(way: Way, folder: Path) -> Outcome:
    """Run it, with everything that it prints set aside."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        outcome = way(folder)
    outcome.seconds = time.perf_counter() - began
    return outcome


def of_findings(findings: list[Any]) -> list[Said]:
    return [Said(f.code, f.detail.get("what", ""), f.moment, f.severity, f.message, f.fix) for f in findings]


def of_error(error: DataError) -> Said:
    """A refusal before the first step carries its code at the front."""
    code = error.what.partition(":")[0]
    return Said(code, "", "before", "error", error.what, error.fix or "")


def settings(folder: Path, **changes: Any) -> Settings:
    return Config(**({
        "num_classes": 3, "min_size": HEIGHT, "max_size": WIDTH, "batch_size": 2, "epochs": 1, "lr": 2e-3,
        "head_lr_multiplier": 2.0, "warmup_steps": 2, "amp": "off", "workers": 0, "device": "cpu",
        "model": "maskrcnn_resnet18_fpn", "weights": "none",
        "logdir": str(folder / "run"), "checkpoint_dir": str(folder / "checkpoints"),
    } | changes))  # fmt: skip


def own(
    data: Any, val: Any = None, model: Callable[[], nn.Module] | None = None, steps: int = 0, **changes: Any
) -> Way:
    """`train` on a data set of one's own; ``steps`` 0: as far as a dry run goes, -1: to the end."""

    def way(folder: Path) -> Outcome:
        net = small_model(changes.get("num_classes", 3)) if model is None else model()
        return _train(settings(folder, **changes), steps, model=net, train_data=data, val_data=val)

    return way


def coco(scene: Scene, change: Any = None, steps: int = 0, val: tuple[Scene, Any] | None = None, **changes: Any) -> Way:
    """`train` on COCO files."""

    def way(folder: Path) -> Outcome:
        data = write_coco(folder / "train", scene, change)
        more = {"data": str(data), "images": str(data.parent), "num_classes": None}
        if val is not None:
            second = write_coco(folder / "val", *val)
            more |= {"val": str(second), "val_images": str(second.parent)}
        return _train(settings(folder, **(more | changes)), steps, model=None)

    return way


def _train(config: Settings, steps: int, **parts: Any) -> Outcome:
    losses: list[float] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = train(
                config,
                dry_run=steps == 0,
                stop_after=steps if steps > 0 else None,
                quiet=False,
                observers=[lambda r: losses.append(r.loss) if getattr(r, "kind", "") == "step" else None],
                **parts,
            )
    except DataError as e:
        return Outcome([of_error(e)], error=str(e.what))
    return Outcome(of_findings(result.findings), losses=losses)


def loop(data: Any, change: Callable[[nn.Module], nn.Module | None] | None = None, epochs: int = 1, **how: Any) -> Way:
    """`train_one_epoch` in a script of one's own. ``change``: what the script does with the model after the optimizer
    was built; it may give back another model, whose optimizer is then used."""

    def way(folder: Path) -> Outcome:
        net = tiny_net(how.get("classes", 3))
        if "before" in how:
            how["before"](net)
        other = change(net) if change is not None and how.get("other") else None
        params = [p for p in (other or net).parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, how.get("lr", 0.005), momentum=0.9)
        if change is not None and not how.get("other"):
            change(net)
        loader = torch.utils.data.DataLoader(data, 4, collate_fn=lambda b: tuple(zip(*b, strict=True)))
        return _warned(lambda: [train_one_epoch(net, loader, optimizer, "cpu") for _ in range(epochs)])

    return way


def tiny_net(classes: int = 3) -> nn.Module:
    """A torchvision detector that takes a moment a step."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

    net = tiny_model(0)
    net.transform.min_size, net.transform.max_size = (HEIGHT,), WIDTH
    net.roi_heads.box_predictor = FastRCNNPredictor(net.roi_heads.box_predictor.cls_score.in_features, classes)
    channels = net.roi_heads.mask_predictor.conv5_mask.in_channels
    net.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, classes)
    return net


def guarded(
    net: Callable[[], nn.Module], batch: Callable[[int], Any], steps: int, each: Any = None, lr: float = 0.01
) -> Way:
    """`Guard` in a loop of one's own. ``each(optimizer)`` makes what is called after every step."""

    def way(folder: Path) -> Outcome:
        model = net()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)
        after = each(optimizer) if each is not None else lambda: None
        guard = Guard(model, optimizer)

        def run() -> None:
            for step in range(steps):
                guard.step(lambda b: model(*b) if isinstance(b, tuple) else model(b), batch(step))
                after()

        return _warned(run)

    return way


def _warned(run: Callable[[], Any]) -> Outcome:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with contextlib.suppress(GuardStop):
            run()
    found = [w.message for w in seen if isinstance(w.message, FindingWarning)]
    said = []
    for warning in found:
        text, _, fix = str(warning).partition("; what to do: ")
        said.append(Said(warning.code, "", "epoch", "warning", text, fix))
    return Outcome(said)


class Oracle(nn.Module):
    """A detector that has learned its task: it gives the truth of ``scene`` for its pictures, found by their pixels."""

    def __init__(self, scene: Scene, most: int = 100) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.known = {self.key(image): target for image, target in (scene.plain(i) for i in range(len(scene)))}
        self.most = most
        self.roi_heads = nn.Module()
        self.roi_heads.detections_per_img = most

    @staticmethod
    def key(image: torch.Tensor) -> bytes:
        return image[:, ::7, ::11].contiguous().numpy().tobytes()

    def forward(self, images: Any, targets: Any = None) -> Any:
        if self.training:
            return {"loss": (self.weight**2).sum()}
        return [self._found(i) for i in images]

    def _found(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        t = self.known.get(self.key(image))
        if t is None:
            empty = torch.zeros(0)
            return {"boxes": torch.zeros(0, 4), "labels": empty.long(), "scores": empty,
                    "masks": torch.zeros(0, 1, *image.shape[-2:])}  # fmt: skip
        n = min(len(t["labels"]), self.most)
        scores = torch.linspace(0.9, 0.8, n) if n else torch.zeros(0)
        return {
            "boxes": t["boxes"][:n],
            "labels": t["labels"][:n],
            "scores": scores,
            "masks": t["masks"][:n, None].float(),
        }


def evaluated(scene: Scene, seen: Any, max_dets: Any = "auto", most: int = 100) -> Way:
    """The evaluation of a detector that knows ``scene`` on ``seen``, its validation set."""

    def way(folder: Path) -> Outcome:
        ceiling = ceiling_of(seen, scene.class_names, max_dets=max_dets, detections=most)
        result = evaluate_model(
            Oracle(scene, most), seen, device="cpu", class_names=scene.class_names, max_dets=max_dets
        )
        names = dict(enumerate(scene.class_names[1:], 1))
        facts = Facts(
            way="own", ceiling=ceiling, matching=matching_of(result, names), mask_readings=mask_readings(result)
        )
        return Outcome(of_findings(judge(facts, "epoch")))

    return way


def plain_torchvision(data: Any, classes: int = 3) -> str:
    """What torchvision's own loop says about the same data, over four steps: nothing, or how it ends."""
    net = tiny_net(classes).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.005, momentum=0.9)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for step in range(4):
                pairs = [data[(2 * step + i) % len(data)] for i in range(2)]
                loss = sum(net([p[0] for p in pairs], [p[1] for p in pairs]).values())
                if not torch.isfinite(loss):
                    return "Loss is not finite, stopping training"
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:70]}"
    return str(seen[0].message).splitlines()[0][:70] if seen else "nothing"
