"""What to do about a cause, in the words of somebody who has a loop of their own: code, never flags of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maskrcnn_coco.records import Finding, lowered_settings

DATA = ("DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK")


def reworded(finding: Finding, groups: list[str]) -> Finding:
    """``finding`` with a fix for a loop of the caller's own; ``groups``: names of the optimizer's groups, in order."""
    finding.fix = _fix(finding, groups)
    for row in finding.evidence:
        row.test, row.outcome = _plain(row.test), _plain(row.outcome)
    return finding


def _plain(text: str) -> str:
    """Without the words of detection: what is cut out of a batch is a sample here."""
    text = text.replace("scan: images, image", "scan: inputs, sample").replace("pixel values", "values")
    return text.replace("image ", "sample ").replace("images ", "samples ")


OF_NO_OP = {"turned", "multiplied", "heavier", "redefined"}
"""Details of a finding that no op of the loss is to blame for: there is nothing to bound."""


def _fix(finding: Finding, groups: list[str]) -> str:
    samples = ", ".join(str(i) for i in finding.culprit.image_ids[:5])
    who = f"sample {samples}" if len(finding.culprit.image_ids) == 1 else f"samples {samples}"
    match finding.cause:
        case "LR_TOO_HIGH":
            return _rate(finding, groups)
        case cause if cause in DATA:
            if finding.detail.get("widespread"):
                return "every batch looked at has the fault: correct the data set, not one sample"
            return f"correct {who} or leave it out of the data set" if samples else "correct the batch's data"
        case "FP16_OVERFLOW":
            modules = finding.detail.get("fp32_modules") or [finding.culprit.module]
            name = (
                "the model" if modules == [""] else ", ".join(str(m) for m in modules if m) or "the module named above"
            )
            return f"run {name} in float32 (torch.autocast(device_type, enabled=False) around it), or use bfloat16"
        case "SCALE_COLLAPSE" if finding.detail.keys() & {"still_scaled", "clipped_scaled"}:
            return finding.fix
        case "SCALE_COLLAPSE":
            return "find what overflows at every scale (the finding beside this one); unscale before you clip"
        case "NORM_STATE":
            return "give the normalisation layer statistics of real data and an eps of 1e-5 or so"
        case "POISONED_STATE" if finding.fix.startswith("correct the"):
            return finding.fix
        case "POISONED_STATE":
            return "load a state from before it was broken: guard.rollback(), or an older checkpoint"
        case "LOSS_MATH":
            if finding.detail.keys() & OF_NO_OP:
                return finding.fix
            kept = finding.fix.startswith("look at")
            return (
                f"{finding.fix}; bound what goes into it (clamp, eps)"
                if kept
                else "bound what goes into the loss's maths"
            )
        case "ACCUMULATION":
            if "--" not in finding.fix:
                return finding.fix
            return "divide the loss of each micro-batch by their number, and clear gradients once a step"
        case "TRANSIENT":
            return "nothing to change; if it returns, test the memory of the machine"
        case "BACKEND":
            return (
                finding.fix
                if "--" not in finding.fix
                else "run this module without torch.compile or the vendor's kernel"
            )
        case "RANK_LOCAL":
            return f"look at process {finding.culprit.rank} and its batch"
    return "" if "--" in finding.fix or "maskrcnn-coco" in finding.fix else finding.fix


def _rate(finding: Finding, groups: list[str]) -> str:
    components = finding.detail.get("components") or ([finding.culprit.component] if finding.culprit.component else [])
    rates, factor = finding.detail.get("lr") or {}, finding.detail.get("factor")
    for name, most in lowered_settings(finding.detail).items():
        return f"{name}={most:g} in the optimizer"
    for name, by_group in (finding.detail.get("usual") or {}).items():
        return _setting(name, by_group, groups, finding.detail.get("since"))
    if not components:
        return "a lower learning rate, or a warm-up"
    parts = []
    for name in components:
        where = (
            f'optimizer.param_groups[{groups.index(name)}]["lr"]' if name in groups else f"the learning rate of {name}"
        )
        now = rates.get(name)
        new = f" = {now * factor:.2g} (now {now:.2g})" if now is not None and factor else " lower"
        parts.append(f"{where}{new}")
    if leapt := finding.detail.get("leapt"):
        times = max(leapt.values())
        parts.append(f"look at what sets it: the rate rose to {times:.2g} times that of the steps before")
    return "; ".join(parts)


def _setting(name: str, by_group: Mapping[str, Any], groups: list[str], since: int | None) -> str:
    value = next(iter(by_group.values()))
    if since is None and set(by_group) >= set(groups):
        return f"{name}={value} in the optimizer"
    places = [f'optimizer.param_groups[{groups.index(g)}]["{name}"] = {value}' for g in by_group if g in groups]
    changed = f"; look at what sets it: it is another since step {since}" if since is not None else ""
    return (", ".join(places) or f"{name}={value}") + changed
