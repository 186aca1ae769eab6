"""The adapters in the real trainers, in an environment that has them: ``make integrations``.

Not collected by the main suite: the packages are large and pin their own. Each check trains a small network with one
poisoned batch, with and without the guard.

    python tests/integrations/real_trainers.py
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
BAD = 37
"""The sample whose input is NaN."""


def data(poison: float | None) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(96, 1, generator=generator)
    if poison is not None:
        x[BAD, 3] = poison
    return TensorDataset(x, y)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


def lightning(guarded: bool, poison: float | None, **options: object) -> tuple[nn.Module, int]:
    import lightning.pytorch as L

    from maskrcnn_coco.integrations.lightning import GuardCallback

    class Module(L.LightningModule):
        def __init__(self, manual: bool) -> None:
            super().__init__()
            self.body, self.automatic_optimization = net(), not manual

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            loss = nn.functional.mse_loss(self.body(batch[0]), batch[1])
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    module, guard = Module(bool(options.pop("manual", False))), GuardCallback(say=False)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard] if guarded else [],
        **options,  # type: ignore[arg-type]
    )
    trainer.fit(module, DataLoader(data(poison), batch_size=8))
    return module, sum(g.refused_steps for g in guard.guards)


def transformers(guarded: bool, poison: float | None, **options: object) -> tuple[nn.Module, int]:
    import transformers as hf
    from transformers.modeling_outputs import SequenceClassifierOutput

    from maskrcnn_coco.integrations.transformers import GuardCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
            out = self.body(x)
            return SequenceClassifierOutput(loss=nn.functional.mse_loss(out, labels), logits=out)

    rows = [{"x": x, "labels": y} for x, y in data(poison)]
    guard = GuardCallback(say=False)
    with tempfile.TemporaryDirectory() as folder:
        args = hf.TrainingArguments(
            output_dir=folder,
            num_train_epochs=2,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            **options,  # type: ignore[arg-type]
        )
        model = Model()
        trainer = hf.Trainer(model=model, args=args, train_dataset=rows, callbacks=[guard] if guarded else [])
        trainer.train()
        schedule = trainer.lr_scheduler.last_epoch
    refused = 0 if guard.guard is None else guard.guard.refused_steps
    assert schedule == trainer.state.global_step - refused, "the schedule waits for refused steps"
    return model, refused


def accelerate(guarded: bool, poison: float | None) -> tuple[nn.Module, int]:
    from accelerate import Accelerator

    from maskrcnn_coco import attach

    accelerator, model = Accelerator(cpu=True), net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = attach(model, optimizer, say=False) if guarded else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data(poison), batch_size=8))
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            if guard is not None:
                guard.see(loss)
            accelerator.backward(loss)
            optimizer.step()
    return model, 0 if guard is None else guard.refused_steps


def check(name: str, run: Callable[..., tuple[nn.Module, int]], **options: object) -> None:
    bare, _ = run(False, math.nan, **dict(options))
    model, refused = run(True, math.nan, **dict(options))
    clean, none = run(True, None, **dict(options))
    plain, _ = run(False, None, **dict(options))
    same = all(torch.equal(a, b) for a, b in zip(clean.parameters(), plain.parameters(), strict=True))
    print(
        f"{name:34} without: {'finite' if finite(bare) else 'NaN'} · with: refused {refused}, clean run refused {none}"
    )
    assert not finite(bare) and finite(model), name
    assert refused == 2 and none == 0 and same, (name, refused, none, same)


def main() -> None:
    """Every trainer that is installed; at least one."""
    warnings.simplefilter("ignore")
    found = 0
    for package, name, run, options in (
        ("lightning", "Lightning, automatic", lightning, {}),
        ("lightning", "Lightning, manual", lightning, {"manual": True}),
        ("lightning", "Lightning, two micro-batches", lightning, {"accumulate_grad_batches": 2}),
        ("transformers", "Hugging Face Trainer", transformers, {}),
        ("transformers", "Hugging Face, two micro-batches", transformers, {"gradient_accumulation_steps": 2}),
        ("accelerate", "Accelerate", accelerate, {}),
    ):
        try:
            __import__(package)
        except ModuleNotFoundError:
            print(f"{name:34} not installed")
            continue
        check(name, run, **options)
        found += 1
    assert found, "none of the trainers is installed: pip install lightning transformers accelerate"


if __name__ == "__main__":
    main()
