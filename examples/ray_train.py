"""A training as a Ray Train job: Ray places and restarts the processes, the run itself saves and resumes.

    pip install maskrcnn-coco 'ray[train]'
    python examples/ray_train.py --data /shared/nuclei --run /shared/runs/nuclei --workers 8 --gpu

The folders must be on a file system that all workers share. A worker that is lost ends the attempt; Ray starts all of
them again, and the run goes on from its newest intact checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray import train as ray_train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """One worker. Ray has connected the processes by now: the run takes its place among them."""
    from maskrcnn_coco import Config, train

    result = train(Config(**settings))
    said = {"finite": result.finite, "steps": result.steps, "last_loss": result.last_loss, **result.metrics}
    # Every worker reports, or none: Ray waits for all of them.
    ray_train.report(said)
    return said


def job(settings: dict[str, Any], run: Path, *, workers: int, gpu: bool, restarts: int = 3) -> TorchTrainer:
    """The job for ``settings``, the fields of `Config`; files go below ``run``."""
    run = run.absolute()  # workers live in folders of their own
    settings = {
        "checkpoint_dir": str(run / "checkpoints"),
        "logdir": str(run / "logs"),
        "checkpoint_every": "60s",
        "resume": "auto",
        "device": "cuda" if gpu else "cpu",
        **settings,
    }
    return TorchTrainer(
        train_loop,
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=str(run), failure_config=FailureConfig(max_failures=restarts)),
    )


def outcome(done: Any) -> dict[str, Any]:
    """What the job's first worker said at its end. Newer Rays keep metrics only beside checkpoints of their own."""
    return done.metrics or done.return_value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    done = job({"data": str(args.data.absolute())}, args.run, workers=args.workers, gpu=args.gpu).fit()
    print(outcome(done))


if __name__ == "__main__":
    main()
