"""``export``: a checkpoint's model in other runtimes' files, each proved against the checkpoint."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.export import FORMATS, Exported, check_format, export
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.wording import count, size


def export_checkpoint(checkpoint: Path, out: Path, formats: str, images: str | None, *, json_mode: bool) -> int:
    """``maskrcnn-coco export``: exit code 0, or 3 where some of ``images`` could not be looked at (the rest was).

    Raises:
        ConfigError, DataError, CheckpointError, ExportError: as their names say.
    """
    console = Console(json_mode=json_mode)
    wanted = list(dict.fromkeys(w.strip().lower() for w in formats.split(",") if w.strip()))
    if not wanted:
        raise ConfigError("--format is empty", expected=", ".join(FORMATS), fix="--format onnx")
    for name in wanted:
        check_format(name)
    done: list[Exported] = []
    said: dict[str, None] = {}
    for name in wanted:
        exported = export(checkpoint, out, name, [images] if images else [])
        for sentence in [*exported.notes, *exported.failed]:  # each format looks at the same pictures
            if sentence not in said:
                console.warn(sentence)
                said[sentence] = None
        _say(console, exported)
        done.append(exported)
    failed = list(dict.fromkeys(sentence for e in done for sentence in e.failed))
    if json_mode:
        answer = {"checkpoint": str(checkpoint), "exported": [_plain(e) for e in done], "failed": failed}
        sys.stdout.write(to_json(answer) + "\n")
    elif "onnx" in wanted:
        console.note(f"use it, without torch: maskrcnn-coco predict {done[wanted.index('onnx')].files[0]} IMAGE…")
    return 3 if failed else 0


def _say(console: Console, e: Exported) -> None:
    sizes = sorted({f"{c.width}×{c.height}" for c in e.cases})
    objects = sorted({c.objects for c in e.cases})
    console.note(f"{e.files[0]} ({size(sum(f.stat().st_size for f in e.files))})")
    console.note(
        f"   finds what the checkpoint finds: {count(len(e.cases), 'picture')} of {', '.join(sizes)} pixels with "
        f"{', '.join(map(str, objects))} objects"
    )
    console.note(
        f"   largest differences: boxes {e.gap.box:.2g} px, scores {e.gap.score:.1g}; masks overlap by {e.gap.iou:.5f} "
        "or more"
    )


def _plain(e: Exported) -> dict[str, object]:
    return {
        "format": e.format,
        "files": [str(f) for f in e.files],
        "cases": [asdict(c) for c in e.cases],
        "box_px": e.gap.box,
        "score": e.gap.score,
        "mask_iou": e.gap.iou,
    }
