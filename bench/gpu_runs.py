"""Whole runs on a GPU: each precision, wild heads, a NaN image, a signal and a resume, each with what must come of it.

    python bench/gpu_runs.py [--epochs 8] [--deterministic] [--dry]

- the built-in shapes at ``--amp off``, fp16 and bf16: AP50, no alarm;
- heads at ten times their rate, no clipping, no warm-up: the run finishes, every alarm LR_TOO_HIGH, none TRANSIENT,
  and how long an investigation takes;
- one image of the training set with a NaN: it is named and left out, in each precision;
- SIGTERM in the middle, then ``--resume auto``: the weights beside those of a run that nobody stopped (on a CPU the
  same bits; on CUDA how far apart they are is the figure).

``--dry``: short runs on the CPU. Ends with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))

import common
from nanbench.tiny import sample, tiny_model
from nanbench.tiny_parts import CLASSES

from maskrcnn_coco import Config, train
from maskrcnn_coco.checkpoint.store import load

DOOR = Path(__file__).resolve().parents[1] / "maskrcnn_coco" / "main_mlops.py"
WILD = {"lr": 5e-3, "head_lr_multiplier": 10.0, "max_grad_norm": 0.0, "warmup_steps": 0}
POISONED = 3
"""Image id of the training image that is NaN."""
Row = tuple[str, str, str]
"""What was run, what came, and "yes" or what is not as it must be."""


def settings(out: Path, device: str, **more: Any) -> Config:
    """A run on the built-in shapes in folders of its own."""
    return Config(device=device, logdir=str(out / "run"), checkpoint_dir=str(out / "checkpoints"), **more)


def incidents(out: Path) -> list[dict[str, Any]]:
    """The run's incidents, as written."""
    return [json.loads(p.read_text()) for p in sorted((out / "run" / "incidents").glob("*.json"))]


def judged(name: str, came: str, problems: list[str]) -> Row:
    """One line of the table."""
    return name, came, "; ".join(problems) or "yes"


def precision(out: Path, device: str, amp: Any, **plan: Any) -> Row:
    """The recipe in one precision."""
    result = train(settings(out, device, demo=True, amp=amp, **plan), quiet=True)
    problems = [f"{len(result.incidents)} alarms"] if result.incidents else []
    problems += [] if result.status == "finished" and result.finite else [result.status]
    ap50, speed = result.metrics.get("segm/AP50", float("nan")), result.images_per_second
    return judged(f"--amp {amp}", f"AP50 {ap50:.3f}, {speed:.1f} images/s", problems)


def wild(out: Path, device: str, **plan: Any) -> Row:
    """Heads that diverge; seconds from the last step before an alarm to the first one after it."""
    stamps: list[float] = []
    config = settings(out, device, demo=True, **(WILD | plan))
    result = train(config, quiet=True, observers=[lambda r: stamps.append(time.monotonic())])
    causes = [i["cause"] for i in incidents(out)]
    problems = [f"an alarm was called {c}" for c in sorted(set(causes) - {"LR_TOO_HIGH"})]
    problems += [] if result.status == "finished" and result.finite else [result.status]
    longest = max((b - a for a, b in itertools.pairwise(stamps)), default=0.0)
    came = f"{len(causes)} alarms, longest pause between records {longest:.1f} s"
    return judged("heads at 10 times their rate, no clipping", came, problems)


class WithNaN(torch.utils.data.Dataset):
    """Somebody's own data set; the pixels of one image are NaN."""

    def __init__(self, ids: range) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Any:
        image, target = sample(self.ids[row])
        return (image * float("nan") if self.ids[row] == POISONED else image), target


def poisoned(out: Path, device: str, amp: Any, model: torch.nn.Module | None) -> Row:
    """A NaN image: named, left out, and nothing non-finite anywhere. Without ``model``: a ResNet-50 at 256 pixels."""
    config = settings(out, device, amp=amp, num_classes=CLASSES, weights="none", min_size=256, max_size=256, epochs=2)
    result = train(config, model=model, train_data=WithNaN(range(24)), val_data=WithNaN(range(100, 108)), quiet=True)
    named = [i["culprit"]["image_ids"] for i in incidents(out)]
    problems = [] if named == [[POISONED]] else [f"expected [[{POISONED}]]"]
    problems += [] if result.status == "finished" and result.finite else [result.status]
    return judged(f"an image of NaN, --amp {amp}", f"incidents name {named}", problems)


def command(out: Path, device: str, steps: int, *more: str) -> list[str]:
    """The command line of a run that is stopped and goes on."""
    folders = ["--logdir", str(out / "run"), "--checkpoint-dir", str(out / "checkpoints")]
    return [sys.executable, str(DOOR), "--demo", "--device", device, "--max-steps", str(steps), *folders, *more]


def resumed(out: Path, device: str, steps: int, *more: str) -> Row:
    """SIGTERM after a third of the steps, then on to the end; weights against a run without."""
    subprocess.run(command(out / "straight", device, steps, *more), check=True, capture_output=True)
    begun = subprocess.Popen(
        command(out / "stopped", device, steps, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = out / "stopped" / "run" / "metrics.jsonl"
    while begun.poll() is None and (not metrics.is_file() or metrics.read_text().count('"kind": "step"') < steps // 3):
        time.sleep(0.05)
    begun.send_signal(signal.SIGTERM)
    code = begun.wait()
    done = subprocess.run(command(out / "stopped", device, steps, "--resume", "auto", *more), capture_output=True)
    problems = [f"exit code {code} after SIGTERM"] if code != 128 + signal.SIGTERM else []
    problems += [f"exit code {done.returncode} at the end"] if done.returncode else []
    if problems:
        return judged("SIGTERM and --resume auto", "", problems)
    a, b = (load(out / side / "checkpoints" / "last.pth")["model"] for side in ("straight", "stopped"))
    apart = max(float((a[k].float() - b[k].float()).abs().max()) for k in a)
    bits = all(torch.equal(a[k], b[k]) for k in a)
    if device == "cpu" and not bits:
        problems.append("other bits on a CPU")
    return judged("SIGTERM and --resume auto", "the same bits" if bits else f"weights apart by {apart:.2e}", problems)


def main() -> int:
    """All runs; the page is written where a GPU was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--deterministic", action="store_true", help="stop and resume with it too")
    parser.add_argument("--dry", action="store_true", help="short, on the CPU")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 0
    device = "cpu" if args.dry else "cuda"
    plan: dict[str, Any] = {"max_steps": 4} if args.dry else {"epochs": args.epochs}
    amps = ("off", "bf16") if args.dry else ("off", "fp16", "bf16")
    with tempfile.TemporaryDirectory(prefix="gpu_runs_") as folder:
        out = Path(folder)
        rows = [precision(out / f"amp_{amp}", device, amp, **plan) for amp in amps]
        rows.append(wild(out / "wild", device, **(plan | ({"max_steps": 12} if args.dry else {}))))
        rows += [poisoned(out / f"nan_{amp}", device, amp, tiny_model() if args.dry else None) for amp in amps]
        rows.append(resumed(out / "plain", device, 12 if args.dry else 120))
        if args.deterministic:
            name, *rest = resumed(out / "deterministic", device, 12 if args.dry else 120, "--deterministic")
            rows.append((f"{name}, --deterministic", *rest))
    lines = ["| run | came | as it must be |", "|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    print("\n".join(lines))
    if not args.dry:
        what = f"`python bench/gpu_runs.py` on {torch.cuda.get_device_name()}, {time.strftime('%Y-%m-%d')}."
        print(common.write("gpu_runs", "Whole runs on a GPU", [what, "\n".join(lines)]))
    return int(any(row[-1] != "yes" for row in rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
