"""What a run looks at before its first step: the whole data set, the caller's own samples and model, the evaluation."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from maskrcnn_coco.data.audit.boxes import check_sizes
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.content import content_of_table
from maskrcnn_coco.data.audit.quarantine import to_quarantine
from maskrcnn_coco.data.audit.whole_set import GEOMETRY, facts_of
from maskrcnn_coco.data.batch import image_id
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import UserData, seeded
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.ceiling import ceiling_of
from maskrcnn_coco.findings.draws import draws_of
from maskrcnn_coco.findings.facts import Content, Draws, Facts, Parameters
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
    found = [Facts(way=way, parameters=_parameters(session))]
    if isinstance(session.train_source, UserData):
        found.append(look_at_samples(session.train_source, session.model, session.data.num_classes))
        found.append(Facts(way=way, draws=_draws(session.train_source, session.config.workers or 0)))
    elif session.data.train is not None:
        found += _tables(session, session.data.train)
    if session.val_source is not None:
        given = getattr(getattr(session.model, "roi_heads", None), "detections_per_img", None)
        names, most = session.data.class_names, session.config.eval_max_dets
        found.append(Facts(way=way, ceiling=ceiling_of(session.val_source, names, max_dets=most, detections=given)))
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
    return parameters_of(session.model, session.optimizer, session.norms_in_eval)


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
            continue
        samples.add(image, target, _image_id(target, index), index)
    if refused is not None and not samples.images:
        raise DataError(
            f"no item of the data set can be trained on; the first: {refused.what}",
            got=refused.got,
            expected=refused.expected or FORM,
            fix=refused.fix,
        )
    if samples.form is not None:
        raise DataError(
            f"no sample of the data set can be trained on: {samples.form}",
            got=f"so in all {samples.images} samples looked at",
            expected=FORM,
            fix="return what torchvision's detection models take",
        )
    return samples.facts("own", whole=seen >= size)


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
