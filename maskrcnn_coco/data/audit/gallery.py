"""The findings of a check, drawn: one self-contained HTML page that opens offline."""

from __future__ import annotations

import base64
import contextlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment
from PIL import Image, ImageDraw

from maskrcnn_coco.data.audit.checks import summary
from maskrcnn_coco.data.audit.quarantine import annotation_of
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.wording import clean

HEALTHY = 12
"""Images without a finding that are drawn, to see that boxes, masks and names are where they belong."""
SIDE = 280
"""Longest side of a picture, pixels."""
PER_KIND = 6
LISTED = 200
"""Pictures and messages of each kind; the counts cover all."""
OBJECTS = 200
"""Most objects that are drawn into one picture."""
_BOX, _MASK = (255, 176, 0), (0, 200, 255)

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Check of {{ name }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --dim: #888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem;
  border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .9rem .2rem 0; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.error { color: #d33; } .warning { color: #b80; } .info { color: #39c; } .dim { color: var(--dim); }
code { font-family: ui-monospace, monospace; font-size: .9em; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0; }
figure { margin: 0; width: {{ side }}px; } figure img { display: block; max-width: 100%; border-radius: 4px; }
figcaption, li { font-size: .85rem; overflow-wrap: anywhere; } details { margin: .5rem 0; }
</style></head><body>
<h1>Check of {{ name }}</h1>
<p>{{ images }} images, {{ annotations }} annotations, {{ classes }} classes.
{% if not kinds %}Nothing to report.{% else %}The box is drawn in orange, the mask in blue.{% endif %}</p>
{% if healthy %}<h2>As training sees it</h2>
<p class="dim">{{ healthy|length }} images without a finding, with all their objects.</p>
<div class="grid">{% for p in healthy %}
<figure><img alt="" src="data:image/jpeg;base64,{{ p.data }}">
<figcaption>{{ p.text }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if kinds %}<table><tr><th>severity</th><th>code</th><th>count</th><th></th></tr>
{% for k in kinds %}<tr><td class="{{ k.severity }}">{{ k.severity }}</td>
<td><a href="#{{ k.code }}-{{ k.severity }}"><code>{{ k.code }}</code></a></td>
<td class="n">{{ k.count }}</td><td>{{ k.title }}</td></tr>
{% endfor %}</table>{% endif %}
{% for k in kinds %}<h2 id="{{ k.code }}-{{ k.severity }}">
<span class="{{ k.severity }}">{{ k.code }}</span> · {{ k.title }} · {{ k.count }}</h2>
<p class="dim">{{ k.fix }}</p>
{% if k.pictures %}<div class="grid">{% for p in k.pictures %}
<figure><img alt="" src="data:image/jpeg;base64,{{ p.data }}">
<figcaption>{{ p.text }}</figcaption></figure>{% endfor %}</div>{% endif %}
<details{% if not k.pictures %} open{% endif %}>
<summary>{{ k.texts|length }} of {{ k.count }} listed</summary>
<ul>{% for t in k.texts %}<li>{{ t }}</li>{% endfor %}</ul></details>
{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class _Picture:
    data: str
    text: str


@dataclass(frozen=True)
class _Kind:
    severity: str
    code: str
    count: int
    title: str
    fix: str
    pictures: list[_Picture]
    texts: list[str]


def write_gallery(table: CocoTable, findings: list[DataFinding], path: str | Path) -> None:
    """Write the page: counts first, then each kind with up to `PER_KIND` pictures and `LISTED` messages.

    Everything from the data is escaped, nothing is loaded from outside. DataError where ``path`` cannot be written.
    """
    by_kind: defaultdict[tuple[str, str], list[DataFinding]] = defaultdict(list)
    for f in findings:
        by_kind[f.severity, f.code].append(f)
    kinds = [
        _Kind(
            severity,
            code,
            count,
            title,
            by_kind[severity, code][0].fix,
            _pictures(table, by_kind[severity, code]),
            texts,
        )
        for severity, code, count, title in summary(findings)
        for texts in [[clean(f.message) for f in by_kind[severity, code][:LISTED]]]
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        name=clean(table.json_path.name),
        images=len(table),
        annotations=len(table.ann_ids),
        classes=len(table.categories),
        kinds=kinds,
        healthy=_healthy(table, findings),
        side=SIDE,
    )
    try:
        write_text(Path(path), text)
    except OSError as e:
        raise DataError(f"cannot write {path}: {e.strerror}", fix="choose a folder that can be written") from e


def _pictures(table: CocoTable, findings: list[DataFinding]) -> list[_Picture]:
    """Pictures of the first findings whose image can be read, no image twice."""
    found: list[_Picture] = []
    seen: set[int] = set()
    for f in findings[: 5 * PER_KIND]:
        if f.image_id is None or f.image_id in seen or len(found) == PER_KIND:
            continue
        seen.add(f.image_id)
        try:
            row = table.row_of(f.image_id)
            which = annotation_of(f)
            ann = None if which is None else table.row_of_annotation(which)
            image = read_image(
                table.image_root, table.file_name(row), table.bit_range, table.size_of(row), as_stored=table.as_stored
            )
        except (DataError, KeyError):
            continue
        found.append(_Picture(_jpeg(_drawn(table, image, [] if ann is None else [ann])), clean(f.message)))
    return found


def _healthy(table: CocoTable, findings: list[DataFinding]) -> list[_Picture]:
    """Images with objects and without a finding, from all over the set; fewer where there are not so many."""
    named = {f.image_id for f in findings if f.severity != "info"}
    have = np.unique(table.ann_image[table.ann_image >= 0])
    have = have[[int(i) not in named for i in table.image_ids[have]]]
    found: list[_Picture] = []
    for row in have[np.unique(np.linspace(0, len(have) - 1, min(2 * HEALTHY, len(have))).astype(int))].tolist():
        if len(found) == HEALTHY:
            break
        try:
            image = read_image(
                table.image_root, table.file_name(row), table.bit_range, table.size_of(row), as_stored=table.as_stored
            )
        except DataError:
            continue
        anns = table.annotations_of(row).tolist()
        counts = Counter(table.class_names[int(table.labels[a])] for a in anns)
        said = ", ".join(f"{n} {clean(name, 40)}" for name, n in counts.most_common(5))
        text = f"{clean(table.file_name(row), 80)}: {said}"
        found.append(_Picture(_jpeg(_drawn(table, image, anns[:OBJECTS])), text))
    return found


def _drawn(table: CocoTable, image: np.ndarray, anns: list[int]) -> Image.Image:
    height, width = image.shape[:2]
    if anns:
        image = _with_masks(image, [table.segmentation_raw(a) for a in anns])
    scale = min(SIDE / max(height, width), 4.0)
    small = Image.fromarray(image).resize((max(round(width * scale), 1), max(round(height * scale), 1)))
    for ann in (a for a in anns if np.isfinite(table.boxes[a]).all()):
        x, y, w, h = (table.boxes[ann].clip(-1e6, 1e6) * scale).tolist()
        corners = (min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h))
        edge = (0.0, 0.0, small.width - 1.0, small.height - 1.0)
        # A box off the picture is drawn at its border, so that something shows where it points.
        x1, x2 = (float(np.clip(v, edge[0], edge[2])) for v in corners[::2])
        y1, y2 = (float(np.clip(v, edge[1], edge[3])) for v in corners[1::2])
        ImageDraw.Draw(small).rectangle((x1, y1, x2, y2), outline=_BOX, width=2 if len(anns) == 1 else 1)
    return small


def _with_masks(image: np.ndarray, segmentations: list[bytes]) -> np.ndarray:
    covered = np.zeros(image.shape[:2], bool)
    for segmentation in segmentations:
        with contextlib.suppress(DataError):
            covered |= decode_mask(segmentation, *image.shape[:2]) > 0
    tinted = image.copy()
    tinted[covered] = (0.5 * tinted[covered] + 0.5 * np.array(_MASK)).astype(np.uint8)
    return tinted


def _jpeg(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode("ascii")
