"""From the settings to a `Session` that is ready for its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from maskrcnn_coco.advice.advise import settle_lr
from maskrcnn_coco.advice.batch_size import settle_batch
from maskrcnn_coco.advice.quick_check import quick_check
from maskrcnn_coco.advice.remembered import fingerprint, recall
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.components import components
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.resolve import is_small, resolve_run, total_steps
from maskrcnn_coco.config.settings import Config, dump_config
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.fingerprint import data_fingerprint
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData, open_data, own_data, quarantine_first, with_found_range
from maskrcnn_coco.data.sources import make_plan, sources
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.distributed.device import resolve_device
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.detect import longest_side
from maskrcnn_coco.guard.deferred import late_reads
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.build import make_model
from maskrcnn_coco.model.ema import Ema, decay_for
from maskrcnn_coco.model.fast.accelerate import takes_outlines
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import Schedule, every_component, has_fpn, optimizer_for
from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.report.tracking_servers import require_installed
from maskrcnn_coco.system.determinism import deterministic
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.system.memory import snapshot_budget
from maskrcnn_coco.system.precision import make_scaler, resolve_amp
from maskrcnn_coco.training import findings
from maskrcnn_coco.training.agreement import require_same_start
from maskrcnn_coco.training.before_training import sized_for
from maskrcnn_coco.training.case import task_of
from maskrcnn_coco.training.continuity import require_same_run
from maskrcnn_coco.training.folders import claim, probe, require_run
from maskrcnn_coco.training.introduction import introduce
from maskrcnn_coco.training.resume import Found, find_together, in_place, restore_run, with_saved_settings
from maskrcnn_coco.training.run_log import Observer, RunLog
from maskrcnn_coco.training.saving import require_space
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.tracked import track


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
    require_installed(config.track)
    ranks = Ranks.start(config.device)
    console = Console(json_mode=json_mode, quiet=quiet or not ranks.is_main)
    found = find_together(config, ranks)
    for sentence in found.notes:
        console.warn(sentence)
    config = with_saved_settings(config, found)
    device = resolve_device(config.device, ranks.world, ranks.local_rank)
    precision = resolve_amp(config.amp, device)
    data = _data_of(config, train_data, found)
    data.identity = data_fingerprint(data) if ranks.is_main and not dry_run else {}
    resolved = settle(config, data, ranks, device, own=train_data, say=None if found.state else console.note)
    config, small = with_found_range(resolved.config, data), is_small(config, data.builtin)
    train_source, val_source = sources(data, config, train_data, val_data, small=small, world=ranks.world)
    own_model = model is not None
    if model is None:
        model = make_model(config, data.classes, small=small)
    config = fpn_settled(config, model, resolved.reasons)
    model.to(device)
    if isinstance(train_source, CocoDataset):
        train_source.outlines = takes_outlines(model, device)
    else:
        train_source.longest = longest_side(model)
    if data.train is not None and config.tile is None:
        for table, found_in in ((data.train, data.findings), (data.val, data.val_findings)):
            if table is not None:
                sized_for(model, table, found_in, config.min_size or 800, config.max_size or 1333)
    plan = make_plan(train_source, data, config, ranks)
    log = RunLog(Path(config.logdir), console, writes=ranks.is_main, observers=tuple(observers))
    session = assemble(config, data, device, precision, ranks, model, train_source, val_source, plan, log, small)
    way = "own" if train_data is not None else "command"
    with ExitStack() as undo:
        undo.enter_context(session)  # a start that fails gives back the folders that it has locked
        session.lock.enter_context(deterministic(config.deterministic))
        noticed = findings.prepare(session, way, own_model=own_model, resuming=found.state is not None)
        require_same_start(session)
        _begin(session, resolved, found, dry_run=dry_run)
        findings.tell_all(session, noticed)
        if found.state is None and not dry_run and config.guard in ("recover", "stop") and not quiet:
            for sentence in check_rates(session):
                console.warn(sentence)
        undo.pop_all()
    return session


def _data_of(config: Config, train_data: Any, found: Found) -> RunData:
    """The run's data, checked; those of the checkpoint that the run goes on from."""
    data = own_data(config, train_data) if train_data is not None else open_data(config)
    if train_data is None and config.num_classes not in (None, data.num_classes):
        raise ConfigError(
            "--num-classes is not the number of classes of the data",
            got=config.num_classes,
            expected=f"{data.num_classes}: {', '.join(data.class_names[1:])[:200]}, and the background",
            fix="leave it away: it is read from the data",
        )
    quarantine_first(data, config)
    if found.state is not None:
        require_same_run(found.state, found.path, config, data.class_names)
    return data


def _begin(session: Session, resolved: recipes.Resolved, found: Found, *, dry_run: bool) -> None:
    """Folders, the state to go on from, and what the run says about itself."""
    prepare_folders(session, resuming=in_place(session.config, found), dry_run=dry_run)
    if found.state is not None:
        restore_run(session, found, dry_run=dry_run)
    introduce(session, resolved, resuming=found.state is not None)
    if not dry_run:
        track(session)


def check_rates(session: Session) -> list[str]:
    """Warnings about learning rates that this model does not stand; see `quick_check`."""
    # Limits are measured with the batches of one process: the mean over several stands more.
    alone = session.ranks.world == 1
    remembered = recall(fingerprint(session.config, session.data, session.precision)) if alone else {}
    return quick_check(
        lambda steps: task_of(session, steps),
        session.schedule.lr,
        total_steps=session.total_steps,
        remembered=remembered,
    )


def preview(config: Config) -> recipes.Resolved:
    """What `train` would use, for ``--print-config``: finds the data, builds nothing, touches no folder."""
    ranks = Ranks.start(config.device)
    data = open_data(config)
    device = resolve_device(config.device, ranks.world, ranks.local_rank)
    return settle(config, data, ranks, device)


def settle(
    config: Config,
    data: RunData,
    ranks: Ranks,
    device: torch.device,
    *,
    own: Any = None,
    say: Callable[[str], None] | None = None,
) -> recipes.Resolved:
    """The settings without gaps; what "auto" asks to be measured is measured.

    Args:
        own: the caller's data set, where ``data`` has no table.
        say: told what batch size fits in memory; None: it is not tried.
    """
    resolved = resolve_run(
        config,
        images=data.usable_images(own),
        builtin=data.builtin,
        device=device,
        world=ranks.world,
        most_objects=data.most_objects,
    )
    if config.batch_size == "auto" and say is not None:
        resolved = settle_batch(resolved, data, ranks, say)
    return settle_lr(resolved, data)


def fpn_settled(config: Config, model: nn.Module, reasons: dict[str, str]) -> Config:
    """``config``, at whose default a model without an FPN has the backbone's rate alone; ``reasons`` say so."""
    if config.fpn_lr_multiplier == 1.0 or reasons.get("fpn_lr_multiplier") == "given" or has_fpn(model):
        return config
    reasons["fpn_lr_multiplier"] = "the model has no backbone.fpn that is trained"
    return msgspec.structs.replace(config, fpn_lr_multiplier=1.0)


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
    log: RunLog,
    small: bool,
) -> Session:
    """Optimizer, schedule, guard and writers around the model; nothing is written yet."""
    optimizer = optimizer_for(model, config)
    scaler = make_scaler(precision, device)
    guard = Guard(
        model,
        optimizer,
        scaler=scaler,
        max_grad_norm=config.max_grad_norm,
        components=components(model),
        mode=config.guard,
        deferred=late_reads(device, optimizer) and ranks.world == 1,
        say=False,
        ranks=ranks,
    )
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
            every_component(model, recipes.component_lrs(config)),
            config.warmup_steps or 0,
            total_steps(plan.steps_per_epoch, config),
            kind=config.schedule,
        ),
        guard=guard,
        forward=Forward(model, device=device, precision=precision, seed=config.seed, rank=ranks.rank),
        train_source=train_source,
        val_source=val_source,
        plan=plan,
        console=log.console,
        log=log,
        saver=Saver(config.checkpoint_dir, keep_epochs=config.keep),
        small=small,
        ema=make_ema(config, model, plan),
        ring=Ring(4, max_bytes=snapshot_budget(device)),
    )


def make_ema(config: Config, model: nn.Module, plan: Plan) -> Ema | None:
    """The average of the weights that --ema asks for."""
    decay = decay_for(config.ema, total_steps(plan.steps_per_epoch, config))
    return None if decay is None else Ema(model, decay)


def prepare_folders(session: Session, *, resuming: bool, dry_run: bool) -> None:
    """Make the run's folders; older ones are renamed with their start time, and that is said."""
    config, console = session.config, session.console
    logdir, checkpoints = Path(config.logdir), Path(config.checkpoint_dir)
    if session.ranks.is_main and not dry_run:
        for folder, moved in claim(checkpoints, logdir, session.lock, resuming=resuming):
            console.note(f"{folder} held an older run; it is now {moved}")
        require_space(session)
        write_text(logdir / "config.yaml", dump_config(config))
    elif session.ranks.is_main:
        for folder in (logdir, checkpoints):
            probe(folder)
            if not resuming:
                require_run(folder)
    session.ranks.barrier("folders")
    if not dry_run:
        session.log.open()
