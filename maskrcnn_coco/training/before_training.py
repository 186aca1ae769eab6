"""What a run looks at before its first step: the whole data set, the caller's own samples and model, the evaluation."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from maskrcnn_coco.components import times_of
from maskrcnn_coco.data.audit.boxes import check_sizes
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.content import content_of_table
from maskrcnn_coco.data.audit.quarantine import to_quarantine
from maskrcnn_coco.data.audit.whole_set import GEOMETRY, facts_of
from maskrcnn_coco.data.batch import image_id
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import seeded
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.ceiling import ceiling_of
from maskrcnn_coco.evaluation.own_items import read_item
from maskrcnn_coco.findings.draws import draws_of
from maskrcnn_coco.findings.facts import Content, Draws, Facts, Lengths, Memory, Parameters
from maskrcnn_coco.findings.forms import TAKEN, Form
from maskrcnn_coco.findings.parameters import parameters_of
from maskrcnn_coco.findings.samples import ENOUGH, Samples
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.training.session import Session

SECONDS = 15.0
"""Most time for the samples of a data set of the caller's own; eight are looked at in any case."""
FEWEST = 8
FORM = "(image float32 (3, H, W) in 0..1, {boxes (N, 4), labels (N,), masks (N, H, W), image_id})"


def look_before(session: Session) -> list[Facts]:
    """Everything that can be known before the first step.

    Raises:
        DataError: no sample of the caller's own data set has the form that is needed.
    """
    way = session.way
    found = [Facts(way=way, parameters=_parameters(session), lengths=_lengths(session))]
    if isinstance(session.train_source, UserData):
        found.append(look_at_samples(session.train_source, session.model, session.data.num_classes))
        found.append(Facts(way=way, draws=_draws(session.train_source, session.config.workers or 0)))
    elif session.data.train is not None:
        found += _tables(session, session.data.train)
    if isinstance(session.val_source, UserData):
        found += look_at_validation(session.val_source, session.train_source, session.model, session.data.num_classes)
    if session.val_source is not None:
        heads = getattr(session.model, "roi_heads", None)
        names, most = session.data.class_names, session.config.eval_max_dets
        given = getattr(heads, "detections_per_img", None)
        ceiling = ceiling_of(session.val_source, names, max_dets=most, detections=given)
        if ceiling is not None:
            ceiling.threshold = float(getattr(heads, "score_thresh", 0.0) or 0.0)
        found.append(Facts(way=way, ceiling=ceiling))
    return found


def _draws(source: UserData, workers: int) -> Draws | None:
    size = len(source)
    try:
        return draws_of(source.dataset, _Draw(source), sorted({0, size // 2, size - 1}), workers)
    except Exception:  # a stranger's code may raise anything: the run itself will name the item
        return None


class _Draw:
    """Items of a data set, with the global generators seeded as a run does."""

    def __init__(self, source: UserData) -> None:
        self.source = source

    def __call__(self, seed: int, index: int, look: Any = None) -> Any:
        with seeded(seed, index, 4):
            item = self.source.dataset[index]
            if look is not None:
                look()
            return item


def _parameters(session: Session) -> Parameters:
    return parameters_of(session.model, session.optimizer, session.norms_in_eval, rates_of(session))


def rates_of(session: Session) -> list[float]:
    """The rate of each group of the optimizer after the warm-up."""
    lr = session.schedule.lr
    groups = session.optimizer.param_groups
    return [lr.get(g.get("component", ""), lr.get("backbone", 0.0)) * times_of(g) for g in groups]


def _lengths(session: Session) -> Lengths:
    schedule = session.schedule
    steps, rate = schedule.total_steps, max(schedule.lr.values(), default=0.0)
    reached = rate * schedule.scale(min(schedule.warmup_steps, max(steps - 1, 0)))
    return Lengths(steps, schedule.warmup_steps, rate, reached)


def look_at_samples(source: UserData, model: nn.Module, num_classes: int) -> Facts:
    """Samples as the data set leaves them, spread over it; all of them where it is small.

    Raises:
        DataError: none has the form that is needed.
    """
    began, size = time.monotonic(), len(source)
    samples = Samples.for_model(model, num_classes)
    step = max(1, size // ENOUGH)
    order = [*range(0, size, step), *(i for i in range(size) if i % step)]
    seen, refused = 0, None
    for index in order:
        late = time.monotonic() - began > SECONDS
        if seen >= FEWEST and (late or (seen >= ENOUGH and samples.objects)):
            break
        seen += 1
        try:
            image, target = source.sample(0, index)
        except DataError as e:  # the run leaves such items out, and says so
            refused = refused or e
            samples.images += 1
            samples.refuse(Form(re.sub(rf"\b{index}\b", "i", e.what), e.fix or TAKEN), index)
            continue
        samples.add(image, target, _image_id(target, index), index)
    if refused is not None and samples.form is not None:
        raise DataError(
            f"no item of the data set can be trained on; the first: {refused.what}",
            got=refused.got,
            expected=refused.expected or FORM,
            fix=refused.fix,
        )
    if samples.form is not None:
        raise DataError(
            f"no sample of the data set can be trained on: {samples.form.what}",
            got=f"so in all {samples.images} samples looked at",
            expected=FORM,
            fix=samples.form.fix,
        )
    return samples.facts("own", whole=seen >= size)


def look_at_validation(source: UserData, train: Any, model: nn.Module, num_classes: int) -> list[Facts]:
    """Validation samples as an evaluation reads them. Odd items are its business: it names them, and goes on."""
    if source.dataset is getattr(train, "dataset", None):
        return [Facts(way="own", memory=Memory(0.0, 0.0, len(source), len(source), same=True))]
    began, size = time.monotonic(), len(source)
    samples = Samples.for_model(model, num_classes)
    for seen, index in enumerate(range(0, size, max(1, size // ENOUGH))):
        if seen >= FEWEST and time.monotonic() - began > SECONDS:
            break
        try:
            item = read_item(source.dataset, index)
        except DataError:
            continue
        target = {"boxes": torch.from_numpy(item.boxes), "labels": torch.from_numpy(item.labels)}
        if item.masks is not None:
            target["masks"] = torch.from_numpy(item.masks)
        samples.add(item.image, target, item.image_id, index)
    facts = samples.facts("own", whole=False, of="validation data")
    if facts.labels is not None:  # what the head is asked to tell apart, training has said
        facts.labels.head = facts.labels.head or num_classes
        facts.labels.num_classes = facts.labels.head
    return [facts]


def _image_id(target: Any, index: int) -> int:
    return image_id(target, index) if isinstance(target, dict) else index


def _tables(session: Session, table: CocoTable) -> list[Facts]:
    data, config = session.data, session.config
    low, high = config.min_size or 800, config.max_size or 1333
    found = [facts_of(table, data.findings, min_size=low, max_size=high)]
    head = getattr(getattr(getattr(session.model, "roi_heads", None), "box_predictor", None), "cls_score", None)
    labels = found[0].labels
    if labels is not None and head is not None:
        labels.head = head.out_features
    if data.val is not None:
        val = facts_of(data.val, data.val_findings, min_size=low, max_size=high, of="validation data")
        if labels is not None and val.labels is not None:
            names = session.data.class_names
            labels.untaught = {names[n]: c for n, c in val.labels.counts.items() if n not in labels.counts}
        val.labels = None
        found.append(val)
    found[0].contents = _contents(data.train, data.findings, "training data")
    if data.val is not None:
        found[1].contents = _contents(data.val, [], "validation data")
    for facts in found:
        facts.way = session.way
    return found


def _contents(table: CocoTable | None, findings: list[DataFinding], of: str) -> list[Content]:
    images, annotations = to_quarantine(findings)
    content = None if table is None else content_of_table(table, of, images, annotations)
    return [] if content is None else [content]


def sized_for(model: nn.Module, table: CocoTable, findings: list[DataFinding], min_size: int, max_size: int) -> None:
    """Objects below the smallest anchor, counted anew at the run's own sizes and anchors; ``findings`` is changed."""
    if any(f.code in GEOMETRY for f in findings):
        return  # boxes that are read another way than they are written do not say how large anything is
    sizes = getattr(getattr(getattr(model, "rpn", None), "anchor_generator", None), "sizes", None)
    smallest = min((s for level in sizes for s in level), default=32) if sizes else 32
    report = Reporter(table)
    check_sizes(table, report, min_size, max_size, int(smallest), np.zeros(len(table.ann_ids), bool))
    findings[:] = [f for f in findings if f.code != "OBJECT_SMALL"] + report.findings
