"""Deep images: one scale for a set, found or given; the picture that was taken is the picture that is trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.config.settings import Config, bit_range, validate
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.errors import ConfigError
from tests.helpers.runs import loadable_model, run
from tests.helpers.tiff_files import png16_bytes, tiff_bytes

SIZE = (48, 64)


def scene(seed: int, low: float, high: float, dtype: str) -> np.ndarray:
    """A ramp with two objects on it: values from ``low`` to ``high``."""
    rng = np.random.default_rng(seed)
    picture = np.tile(np.linspace(0, 0.7, SIZE[1]), (SIZE[0], 1)) + 0.02 * rng.random(SIZE)
    picture[10:25, 12:30] = 0.95 + 0.05 * rng.random((15, 18))
    values = low + (high - low) * picture
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "iu" else values.astype(dtype)


def write_set(folder: Path, images: Sequence[np.ndarray | bytes], suffix: str = ".tif") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    for n, image in enumerate(images):
        data = image if isinstance(image, bytes) else tiff_bytes(image)
        (folder / f"{n}{suffix}").write_bytes(data)
        entries.append({"id": n + 1, "file_name": f"{n}{suffix}", "height": SIZE[0], "width": SIZE[1]})
        annotations.append({
            "id": n + 1, "image_id": n + 1, "category_id": 1, "bbox": [12, 10, 18, 15], "area": 270, "iscrowd": 0,
            "segmentation": [[12, 10, 30, 10, 30, 25, 12, 25]],
        })  # fmt: skip
    doc = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "labels.json").write_text(json.dumps(doc))
    return folder


def pixels(table: CocoTable) -> list[np.ndarray]:
    return [read_image(table.image_root, table.file_name(r), table.bit_range) for r in range(len(table))]


SETS: dict[str, tuple[list[np.ndarray], BitRange]] = {
    "12-bit grey": ([scene(n, 40, 4000, "u2") for n in range(3)], BitRange(0, 4095)),
    "12-bit grey, 10 bits used": ([scene(n, 100, 1100, "u2") for n in range(3)], BitRange(102, 1099)),
    "dim frames around 255": ([scene(n, 5, top, "u2") for n, top in enumerate((250, 262, 248))], BitRange(5, 262)),
    "16 bits": ([scene(n, 0, 65000, "u2") for n in range(3)], BitRange(0, 65535)),
    "bytes in 16 bits": ([scene(n, 0, 255, "u2") for n in range(3)], BitRange(0, 255)),
    "an offset": ([scene(n, 30000, 31000, "u2") for n in range(3)], BitRange(30002, 30999)),
    "floats 0..1 and a little more": ([scene(n, 0, t, "f4") for n, t in enumerate((1.0, 1.004, 0.99))], BitRange(0, 1)),
    "floats -1..1": ([scene(n, -1, 1, "f4") for n in range(3)], BitRange(-1, 1)),
    "floats 0..255": ([scene(n, 0, 255, "f4") for n in range(3)], BitRange(0, 255)),
    "CT values": ([scene(n, -1000, 1500, "i2") for n in range(3)], BitRange(-997, 1498)),
}


@pytest.mark.parametrize("name", SETS)
def test_the_whole_range_of_bytes_is_used_and_frames_stay_alike(name: str, tmp_path: Path) -> None:
    images, want = SETS[name]
    found = find_data(write_set(tmp_path, images))
    scale = found.train.bit_range
    assert scale is not None
    span = want.high - want.low
    assert scale.low == pytest.approx(want.low, abs=0.005 * span)
    assert scale.high == pytest.approx(want.high, abs=0.01 * span)
    seen = pixels(found.train)
    for picture in seen:
        assert len(np.unique(picture)) > 120 and int(np.ptp(picture)) > 200
    means = [p.mean() for p in seen]
    assert max(means) / min(means) < 1.1
    says = [n for n in found.notes if "8 bits" in n]
    assert len(says) == 1 and str(scale) in says[0] and "--bit-range" in says[0]
    codes = {f.code for f in audit(found.train)}
    assert "IMAGE_16BIT" in codes and not codes & {"IMAGE_CONSTANT", "IMAGE_FEW_LEVELS", "IMAGE_UNREADABLE"}


def test_hot_pixels_do_not_set_the_range(tmp_path: Path) -> None:
    images = [scene(n, 0, 900, "u2") for n in range(3)]
    images[1][3, 3] = 65535
    assert find_data(write_set(tmp_path, images)).train.bit_range == BitRange(0, 1023)


@pytest.mark.parametrize("kind", ["png", "png with alpha", "tiff", "deflated tiff"])
def test_16_bit_rgb_keeps_its_lower_byte(kind: str, tmp_path: Path) -> None:
    values = np.stack([scene(n, 50, 4000, "u2") for n in range(3)], 2)
    if kind == "png with alpha":
        data = png16_bytes(np.dstack([values, np.full(SIZE, 65535, np.uint16)]))
    elif kind == "png":
        data = png16_bytes(values)
    else:
        data = tiff_bytes(values, deflate=kind.startswith("deflated"))
    table = find_data(write_set(tmp_path, [data], ".png" if "png" in kind else ".tif")).train
    assert table.bit_range == BitRange(0, 4095)
    assert np.array_equal(pixels(table)[0], np.clip(np.rint(values * (255 / 4095)), 0, 255).astype(np.uint8))
    assert any(f.code == "IMAGE_16BIT" for f in audit(table))


def test_what_the_scale_destroys_is_a_finding(tmp_path: Path) -> None:
    write_set(tmp_path, [scene(0, 0, 60000, "u2"), scene(1, 0, 900, "u2"), np.full(SIZE, 7, np.uint16)])
    table = find_data(tmp_path, bit_range=BitRange(0, 65535)).train
    found = {f.code: f for f in audit(table) if f.code in ("IMAGE_FEW_LEVELS", "IMAGE_CONSTANT")}
    few = found["IMAGE_FEW_LEVELS"]
    assert few.file_name == "1.tif" and few.severity == "warning" and "--bit-range" in few.fix
    assert found["IMAGE_CONSTANT"].file_name == "2.tif"
    dim = find_data(tmp_path, bit_range=BitRange(20000, 65535)).train
    constant = [f for f in audit(dim) if f.code == "IMAGE_CONSTANT"]
    assert {f.file_name for f in constant} == {"1.tif", "2.tif"} and "after decoding" in constant[0].message


def test_label_maps_given_as_images_are_found_and_drawings_are_not(tmp_path: Path) -> None:
    picture = np.zeros(SIZE, np.uint8)
    picture[10:20, 10:20] = 3
    write_set(tmp_path, [scene(0, 0, 255, "u1")], ".png")
    Image.fromarray(picture).save(tmp_path / "0.png")
    assert "IMAGE_FEW_LEVELS" in {f.code for f in audit(find_data(tmp_path).train)}
    grey = Image.fromarray(picture * 60)
    for drawing in (grey, grey.convert("P"), Image.fromarray(picture > 0)):
        drawing.save(tmp_path / "0.png")
        assert not {f.code for f in audit(find_data(tmp_path).train)} & {"IMAGE_FEW_LEVELS", "IMAGE_CONSTANT"}


@pytest.mark.parametrize(
    ("image", "says", "command"),
    [
        (np.zeros((*SIZE, 5), "u2"), "5 bands of 16-bit unsigned", "-b 1 -b 2 -b 3 "),
        (np.zeros((*SIZE, 3), "f4"), "3 bands of 32-bit float", "-ot UInt16 -scale"),
        (np.zeros(SIZE, "f8"), "one band of 64-bit float", "-b 1 -ot Float32"),
        (np.zeros((*SIZE, 2), "u1"), "2 bands of 8-bit unsigned", "-b 1 "),
    ],
)
def test_bands_and_numbers_that_cannot_be_read_say_so(
    image: np.ndarray, says: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "a b.tif").write_bytes(tiff_bytes(image))
    table = find_data(write_set(tmp_path, [scene(0, 0, 255, "u1"), image])).train
    found = [f for f in audit(table) if f.severity == "error"]
    assert [f.code for f in found] == ["IMAGE_UNSUPPORTED"] and says in found[0].message
    with pytest.raises(Exception, match="not supported") as caught:
        read_image(tmp_path, "a b.tif")
    fix: Any = getattr(caught.value, "fix", "")
    assert command in fix and "'" in fix


def test_the_page_and_the_bands_that_are_read_are_said(tmp_path: Path) -> None:
    stack = tiff_bytes(*(scene(n, 0, 255, "u1") for n in range(4)))
    bands = np.stack([scene(n, 0, 255, "u1") for n in range(5)], 2)
    table = find_data(write_set(tmp_path, [stack, bands])).train
    found = {f.code: f for f in audit(table)}
    assert "first of 4 pages" in found["IMAGE_PAGES"].message and found["IMAGE_PAGES"].severity == "warning"
    assert "first 3 of 5 bands" in found["IMAGE_BANDS"].message
    seen = pixels(table)
    assert np.array_equal(seen[0][..., 0], scene(0, 0, 255, "u1")) and np.array_equal(seen[1], bands[..., :3])


def test_validation_data_has_the_scale_of_the_training_data(tmp_path: Path) -> None:
    write_set(tmp_path / "train", [scene(n, 0, 1000, "u2") for n in range(2)])
    write_set(tmp_path / "val", [scene(5, 0, 300, "u2")])
    found = find_data(tmp_path / "train", val=tmp_path / "val")
    assert found.val is not None and found.val.bit_range == found.train.bit_range == BitRange(0, 1023)
    assert pixels(found.val)[0].max() < 80


def test_a_checkpoint_keeps_the_scale_and_prediction_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_set(tmp_path / "data", [scene(n, 0, 1000, "u2") for n in range(4)])
    result = run(data, tmp_path, model=loadable_model(classes=2), epochs=1)
    assert result.exit_code == 0
    last = tmp_path / "checkpoints" / "last.pth"
    contents = torch.load(last, weights_only=True)
    assert contents["bit_range"] == [0, 1023] and contents["config"]["bit_range"] == "0,1023"
    assert "bit_range: 0,1023" in (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "dim.tif").write_bytes(tiff_bytes(scene(9, 0, 200, "u2")))
    capsys.readouterr()
    for flags, factor, says in (
        ([], 255 / 1023, "0..1023 becomes 0..255, as in training"),
        (["--bit-range", "0,4000"], 255 / 4000, "as --bit-range says"),
        (["--bit-range", "auto"], 1.0, "0..255 becomes 0..255 for the whole set"),
    ):
        out = tmp_path / "out"
        assert main(["predict", str(last), str(tmp_path / "dim.tif"), "--out", str(out), "--score", "1", *flags]) == 0
        drawn = np.asarray(Image.open(out / "dim.png"))
        assert np.median(drawn) == pytest.approx(np.median(scene(9, 0, 200, "u2")) * factor, abs=1.5)
        said = capsys.readouterr()
        assert says in said.out + said.err


def test_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bit_range("auto") is None and bit_range("-1000,2000.5") == (-1000, 2000.5)
    for wrong in ("", "5", "5,5", "9,1", "nan,1", "a,b", "1,2,3"):
        with pytest.raises(ConfigError, match="--bit-range"):
            validate(Config(bit_range=wrong))
    data = str(write_set(tmp_path, SETS["CT values"][0]))
    assert main(["check", "--data", data, "--bit-range", "-500,500", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("-500..500 becomes 0..255, as --bit-range says" in n for n in notes)
    assert main(["check", "--data", data, "--bit-range", "500,-500"]) == 2
