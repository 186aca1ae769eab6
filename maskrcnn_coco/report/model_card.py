"""``MODEL_CARD.md``: what a trained model is, how it came about and what it cannot do, from the run's own files.

Torch-free. Nothing is claimed that the files do not say; what only a person knows is left to be filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import Incident
from maskrcnn_coco.report.run_files import RunFiles
from maskrcnn_coco.wording import clean

CARD = "MODEL_CARD.md"
FILL = "_to be filled in_"
"""What the files do not say."""
_SHOWN = ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50")
_SETTINGS = (
    *("model", "weights", "lr", "head_lr_multiplier", "rpn_lr_multiplier", "fpn_lr_multiplier", "warmup_steps"),
    *("schedule", "epochs"),
    *("batch_size", "accumulate", "optimizer", "weight_decay", "max_grad_norm", "amp", "augment", "flip", "ema"),
    *("min_size", "max_size", "freeze_stages", "seed"),
)


def model_card(run: RunFiles, *, ceiling: Mapping[str, float] | None = None, license: str = "") -> str:
    """The card, in Markdown with the front matter that model hubs read.

    Args:
        ceiling: AP that the truth itself scores on the validation data, ``segm/AP`` …; what no model can pass.
        license: SPDX name of the model's licence.
    """
    data = run.info.get("data", {})
    classes = [_cell(c) for c in data.get("classes", [])]
    metrics = _best(run)
    lines = [
        *("---", "library_name: maskrcnn-coco", "pipeline_tag: image-segmentation"),
        f"license: {license or 'other  # fill in: SPDX name'}",
        *("tags: [mask-rcnn, instance-segmentation, coco]", "---", ""),
        *("# Model card", "", "A Mask R-CNN fine-tuned with maskrcnn-coco: finds objects, with box, mask and score."),
        *("", "## Classes", "", ", ".join(classes) or FILL, "", "## Data", ""),
        f"- training: {_file(data.get('train'))}, {data.get('training images', FILL)} images",
        f"- validation: {_file(data.get('val'))}, {data.get('validation images', 'none')} images",
        f"- where the images come from, who annotated them, their licence: {FILL}",
        *("", "## Accuracy", "", *_accuracy(metrics, ceiling or {})),
        *("", "## Recipe", "", "| setting | value | why |", "|---|---|---|", *_recipe(run)),
        *("", "## What happened in training", "", *_incidents(run.incidents), *_findings(run.result)),
        *("", "## Known limits", "", *_limits(run, metrics)),
        f"- intended use, and use that is out of scope: {FILL}",
        f"- people in the images, consent, bias: {FILL}",
        *("", "## Licence", "", f"- of the weights: {license or FILL}", f"- of the training data: {FILL}"),
        *(
            "",
            "## Use",
            "",
            "```python",
            "from maskrcnn_coco import load",
            "",
            'found = load("best.pth").predict("photo.jpg")',
        ),
        *("```", ""),
    ]
    return "\n".join(lines)


def _best(run: RunFiles) -> dict[str, float]:
    """The metrics of the epoch that best.pth holds; of the last one where no epoch was evaluated."""
    best = max(
        (e["metrics"] for e in run.evals if isinstance(e.get("metrics"), dict)),
        key=lambda m: _number(m.get("segm/AP", m.get("bbox/AP"))),
        default=None,
    )
    return best if best is not None else run.result.get("metrics", {})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else -1.0


def _accuracy(metrics: Mapping[str, Any], ceiling: Mapping[str, float]) -> list[str]:
    shown = [m for m in _SHOWN if _number(metrics.get(m)) >= 0]
    if not shown:
        return ["Not measured: the run had no validation data, or ended before its first evaluation."]
    lines = ["| metric (validation data, COCO) | this model | the truth itself scores |", "|---|---|---|"]
    for name in shown:
        top = f"{ceiling[name]:.4f}" if name in ceiling else ""
        lines.append(f"| {name} | {metrics[name]:.4f} | {top} |")
    return lines


def _recipe(run: RunFiles) -> list[str]:
    reasons = run.info.get("reasons", {})
    names = [n for n in _SETTINGS if run.config.get(n) is not None]
    return [f"| {n} | {_cell(run.config[n])} | {_cell(reasons.get(n, 'default'))} |" for n in names]


def _incidents(incidents: list[Incident]) -> list[str]:
    if not incidents:
        return ["No step was refused for a fault."]
    return [
        f"- {i.id}: {i.cause} at step {i.step} (confidence {i.confidence:.2f}); what was done: {i.action.kind}, "
        f"{i.outcome}; {_cell(i.fix)}"
        for i in incidents
    ]


def _findings(result: Mapping[str, Any]) -> list[str]:
    found = [f for f in result.get("findings", []) if isinstance(f, dict) and f.get("severity") != "info"]
    return [f"- finding {f.get('code')}: {_cell(f.get('message', ''))}" for f in found]


def _limits(run: RunFiles, metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    sizes = [run.config.get("min_size"), run.config.get("max_size")]
    if all(sizes):
        lines.append(
            f"- sees images resized to {sizes[0]} pixels on the shorter and at most {sizes[1]} on the longer side: "
            "much smaller objects than in training are missed; larger images want `--tile auto`"
        )
    last = next((e for e in reversed(run.evals) if e.get("per_class")), None)
    weak = []
    for name, values in (last or {}).get("per_class", {}).items():
        ap = _number(values.get("segm/AP", values.get("bbox/AP"))) if isinstance(values, dict) else -1.0
        if 0 <= ap < 0.5 * max(_number(metrics.get("segm/AP")), 0.0):
            weak.append(f"{_cell(name)} ({ap:.3f})")
    if weak:
        lines.append(f"- classes found less than half as well as the average, by AP: {', '.join(weak)}")
    lines.append("- accuracy on images unlike the validation data is not known")
    return lines


def _file(value: Any) -> str:
    return f"`{_cell(Path(str(value)).name)}`" if value else "built-in or own data"


def _cell(value: Any) -> str:
    return clean(" ".join(str(value).split())).replace("|", "\\|").replace("<", "&lt;")
