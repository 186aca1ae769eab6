"""The numbers of a record under the names that every tracker shows them by. Standard library only."""

from __future__ import annotations

from maskrcnn_coco.records import EpochRecord, EvalRecord, StepRecord


def scalars_of(record: StepRecord | EpochRecord | EvalRecord) -> dict[str, float]:
    """Tag → value. A metric that is undefined (-1, no such ground truth) gets no point."""
    match record:
        case StepRecord():
            return _of_step(record)
        case EpochRecord():
            values = {f"epoch/loss/{k}": v for k, v in record.losses.items()} | {"epoch/loss/total": record.loss}
            return values | {"epoch/grad_norm": record.grad_norm, "epoch/images_per_second": record.images_per_second}
        case EvalRecord():
            values = {f"val/{k}": v for k, v in record.metrics.items() if v >= 0}
            values |= {f"val/loss/{k}": v for k, v in record.losses.items()}
            values |= {"val/loss/total": sum(record.losses.values())} if record.losses else {}
            for name, metrics in record.per_class.items():
                values |= {f"val/class/{name}/{k}": v for k, v in metrics.items() if v >= 0}
            return values


def _of_step(record: StepRecord) -> dict[str, float]:
    values = {f"loss/{k}": v for k, v in record.losses.items()} | {"loss/total": record.loss}
    values |= {f"lr/{k}": v for k, v in record.lr.items()}
    values |= {f"grad_norm/{k}": v for k, v in record.group_grad_norm.items()} | {"grad_norm/total": record.grad_norm}
    values |= {f"update_ratio/{k}": v for k, v in record.update_ratio.items()}
    values["skipped"] = 0.0 if record.applied else 1.0
    if record.loss_scale is not None:
        values["loss_scale"] = record.loss_scale
    return values
