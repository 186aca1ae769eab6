"""From the settings to a `Session` that is ready for its first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.advice.quick_check import quick_check
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.components import components
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.dataset import CocoDataset, UserData
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData, check_data, open_data, read_quarantine
from maskrcnn_coco.data.transforms import SCALES
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.deferred import late_reads
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.team import TeamGuard
from maskrcnn_coco.model.build import build_model, set_sampler
from maskrcnn_coco.model.fast.accelerate import takes_outlines
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import Schedule, build_optimizer
from maskrcnn_coco.replay.snapshot import Ring
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.precision import amp_warning, make_scaler, resolve_amp
from maskrcnn_coco.training.introduction import introduce, prepare_folders
from maskrcnn_coco.training.resume import find_together, restore_run, with_saved_settings
from maskrcnn_coco.training.session import Observer, Session


def open_session(
    config: Config,
    *,
    model: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    observers: Sequence[Observer] = (),
    json_mode: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Session:
    """Build everything; raises before any folder is touched where something is unusable.

    Raises:
        ConfigError, DataError, CheckpointError: as their names say.
    """
    ranks = Ranks.start(config.device)
    console = Console(json_mode=json_mode, quiet=quiet or not ranks.is_main)
    found = find_together(config, ranks)
    for sentence in found.notes:
        console.warn(sentence)
    config = with_saved_settings(config, found.state)
    device = resolve_device(config.device, ranks)
    precision = resolve_amp(config.amp, device)
    data = own_data(config, train_data) if train_data is not None else open_data(config)
    quarantine_first(data, config)
    resolved = resolve_run(config, data, train_data, device=device, ranks=ranks)
    config, quick = resolved.config, is_quick(config, data)
    train_source, val_source = sources(data, config, train_data, val_data, quick=quick)
    if model is None:
        model = make_model(config, data.num_classes, quick=quick)
    model.to(device)
    if isinstance(train_source, CocoDataset):
        train_source.outlines = takes_outlines(model, device)
    plan = make_plan(train_source, data, config, ranks)
    session = assemble(config, data, device, precision, ranks, model, train_source, val_source, plan, console, quick)
    session.observers = tuple(observers)
    prepare_folders(session, resuming=found.state is not None, dry_run=dry_run)
    if found.state is not None:
        restore_run(session, found)
    introduce(session, resolved, resuming=found.state is not None)
    if found.state is None and not dry_run and config.guard in ("recover", "stop") and not quiet:
        for sentence in quick_check(session):
            console.warn(sentence)
    return session


def resolve_device(name: str, ranks: Ranks) -> torch.device:
    """The device to train on.

    Raises:
        ConfigError: a device this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.world > 1:
        name = f"cuda:{ranks.local_rank}"
    device = torch.device(name)
    count = torch.cuda.device_count()
    missing = (device.type == "cuda" and (device.index or 0) >= count) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(
            f"--device {name}: this machine has no such device",
            got=f"{count} CUDA devices",
            fix="use --device cpu, or look at the driver with maskrcnn-coco doctor",
        )
    return device


def own_data(config: Config, train_data: Any) -> RunData:
    """The caller's own data set as run data: only the class count is known.

    Raises:
        ConfigError: ``num_classes`` is missing, or the data set is empty or has no length.
    """
    if config.num_classes is None:
        raise ConfigError(
            "num_classes is needed with a data set of your own",
            expected="the number of classes with background, as in torchvision",
            fix="Config(num_classes=…)",
        )
    try:
        size = len(train_data)
    except TypeError as e:
        raise ConfigError(
            "train_data has no length", got=type(train_data).__name__, expected="a map-style data set"
        ) from e
    if size == 0:
        raise ConfigError("train_data is empty", expected="at least one (image, target)")
    names = ("background", *(f"class {i}" for i in range(1, config.num_classes)))
    return RunData(None, None, names, builtin=False)


def quarantine_first(data: RunData, config: Config) -> None:
    """Audit, then add the ids of ``--quarantine``."""
    check_data(data, config)
    if config.quarantine is not None:
        given = read_quarantine(config.quarantine)
        data.bad_images.update(given["image_ids"])
        data.bad_annotations.update(given["annotation_ids"])


def is_quick(config: Config, data: RunData) -> bool:
    """Whether the small network for the built-in shapes is trained."""
    return data.builtin and config.model in (None, "maskrcnn_resnet18_fpn")


def resolve_run(
    config: Config, data: RunData, train_data: Any, *, device: torch.device, ranks: Ranks
) -> recipes.Resolved:
    """The settings without gaps."""
    images = len(data.train) if data.train is not None else len(train_data)
    resolved = recipes.resolve(
        config,
        num_images=images - len(data.bad_images),
        builtin=is_quick(config, data),
        device=device.type,
        world=ranks.world,
    )
    warning = amp_warning(config.amp, device)
    if warning is not None:
        resolved.warnings.append(warning)
    if resolved.config.lr == "auto":
        from maskrcnn_coco.advice.advise import settle_lr

        resolved = settle_lr(resolved, data)
    return resolved


def preview(config: Config) -> recipes.Resolved:
    """What `train` would use, for ``--print-config``: finds the data, builds nothing, touches no folder."""
    ranks = Ranks.start(config.device)
    data = open_data(config)
    return resolve_run(config, data, None, device=resolve_device(config.device, ranks), ranks=ranks)


def make_model(config: Config, num_classes: int, *, quick: bool) -> nn.Module:
    """The model that a resolved ``config`` describes. ``quick``: the small variant for the built-in shapes."""
    assert config.model and config.weights and config.min_size and config.max_size
    # Weights of new heads are drawn from torch's generator: the same seed gives the same model.
    torch.manual_seed(config.seed)
    model = build_model(
        config.model,
        num_classes,
        weights=config.weights,
        backbone_weights=config.backbone_weights,
        min_size=config.min_size,
        max_size=config.max_size,
        freeze_stages=config.freeze_stages,
        small=quick,
        detections_per_image=config.box_detections_per_image or 100,
    )
    set_sampler(model, config.box_batch_size_per_image)
    return model


def sources(
    data: RunData, config: Config, train_data: Any, val_data: Any, *, quick: bool
) -> tuple[CocoDataset | UserData, CocoDataset | UserData | None]:
    """Training and validation source of samples."""
    if data.train is None:
        own, val = UserData(train_data, seed=config.seed), val_data
        return own, None if val is None else UserData(val, seed=config.seed)
    assert config.min_size and config.max_size
    train = CocoDataset(
        data.train,
        train=True,
        seed=config.seed,
        min_size=config.min_size,
        max_size=config.max_size,
        # The built-in images have the size they are trained at: smaller scales only lose the small shapes.
        scales=(1.0,) if quick else SCALES,
    )
    train.quarantine(sorted(data.bad_annotations))
    if data.val is None:
        return train, None
    return train, CocoDataset(
        data.val, train=False, seed=config.seed, min_size=config.min_size, max_size=config.max_size
    )


def make_plan(source: CocoDataset | UserData, data: RunData, config: Config, ranks: Ranks) -> Plan:
    """Which images make each step; images left out from the start are never in it."""
    plan = Plan(
        config.seed,
        source.image_ids,
        config.batch_size or 1,
        config.accumulate,
        rank=ranks.rank,
        world=ranks.world,
        aspect_ratios=source.aspect_ratios,
    )
    plan.quarantine(sorted(data.bad_images))
    return plan


def assemble(
    config: Config,
    data: RunData,
    device: torch.device,
    precision: str,
    ranks: Ranks,
    model: nn.Module,
    train_source: CocoDataset | UserData,
    val_source: CocoDataset | UserData | None,
    plan: Plan,
    console: Console,
    quick: bool,
) -> Session:
    """Optimizer, schedule, guard and writers around the model; nothing is written yet."""
    optimizer = build_optimizer(
        model, kind=config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay or 0.0
    )
    scaler = make_scaler(precision, device)
    guard = (Guard if ranks.world == 1 else TeamGuard)(
        model,
        optimizer,
        scaler=scaler,
        max_grad_norm=config.max_grad_norm,
        components=components(model),
        mode=config.guard,
        deferred=late_reads(device, optimizer) and ranks.world == 1,
    )
    if isinstance(guard, TeamGuard):
        guard.ranks = ranks
    return Session(
        config=config,
        data=data,
        device=device,
        precision=precision,
        ranks=ranks,
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        schedule=Schedule(
            recipes.component_lrs(config), config.warmup_steps or 0, plan.steps_per_epoch * (config.epochs or 1)
        ),
        guard=guard,
        forward=Forward(model, device=device, precision=precision, seed=config.seed, rank=ranks.rank),
        train_source=train_source,
        val_source=val_source,
        plan=plan,
        tracker=None,
        console=console,
        saver=Saver.__new__(Saver),
        quick=quick,
        ring=Ring(4, max_bytes=snapshot_budget()),
    )


def snapshot_budget() -> int:
    """Most bytes for in-memory snapshots: a quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        free = 4 << 30  # not said by this system: enough for ResNet-50 three times over
    return free // 4
