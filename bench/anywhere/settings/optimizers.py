"""Torch's optimizers, each with settings that a small training learns with, and values of each setting to try."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Options = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """One optimizer.

    Attributes:
        sound: task → options that learn.
        values: setting → values that its constructor takes: some ruin a training, some are only odd.
        set_late: the same for values that it refuses: schedules, callbacks and files set those without asking it.
    """

    kind: type[torch.optim.Optimizer]
    sound: dict[str, Options]
    values: dict[str, tuple[Any, ...]]
    set_late: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The class's name."""
        return self.kind.__name__


def muon(model: nn.Module, options: Options) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for what is left, as everybody has them."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    made: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, **options)]
    return made + ([torch.optim.AdamW(others, lr=3e-3)] if others else [])


OPTIM = torch.optim
DECAYS = (0.1, 10.0, 1e3)
BETAS = ((0.9, 0.0), (0.9, 0.1), (0.9, 0.5), (0.99, 0.3), (0.0, 0.99), (0.8, 0.95), (0.95, 0.99), (0.99, 0.999))
EPS = (0.0, 1e-12, 1e-4, 100.0)
LATE_ADAM = {"betas": ((0.9, 0.0), (1.1, 0.999), (0.9, 1.1), (-0.9, 0.999)), "weight_decay": (-10.0, 1e3),
             "eps": (-1e-2, 100.0)}  # fmt: skip

TRIED: tuple[Tried, ...] = (
    Tried(OPTIM.SGD, {"houses": {"lr": 0.01, "momentum": 0.9}, "cnn": {"lr": 0.05, "momentum": 0.9},
                  "texts": {"lr": 0.3, "momentum": 0.9}},
          {"momentum": (0.0, 0.5, 0.95, 0.99, 0.999, 1.0, 1.2, 5.0),
           "dampening": (0.5, 0.9, 1.0, -1.0, -10.0, 3.0, 30.0),
           "weight_decay": (1e-3, 1.0, 30.0, 300.0), "nesterov": (True,), "maximize": (True,)},
          {"momentum": (1.2, 3.0, -0.9, -1.5), "weight_decay": (-1.0, -30.0, 300.0), "dampening": (-10.0, 30.0),
           "maximize": (True,)}),
    Tried(OPTIM.Adam, {"houses": {"lr": 0.01}, "cnn": {"lr": 3e-3}, "texts": {"lr": 3e-3}},
          {"betas": BETAS, "eps": EPS, "weight_decay": DECAYS, "amsgrad": (True,), "maximize": (True,)}, LATE_ADAM),
    Tried(OPTIM.AdamW, {"houses": {"lr": 0.01}, "cnn": {"lr": 3e-3}, "texts": {"lr": 3e-3}},
          {"betas": BETAS, "eps": EPS, "weight_decay": (*DECAYS, 1e4), "amsgrad": (True,), "maximize": (True,)},
          LATE_ADAM),
    Tried(OPTIM.NAdam, {"houses": {"lr": 0.01}, "cnn": {"lr": 3e-3}, "texts": {"lr": 3e-3}},
          {"betas": BETAS, "eps": EPS, "weight_decay": DECAYS, "momentum_decay": (0.0, 1.0, 100.0),
           "decoupled_weight_decay": (True,)}, LATE_ADAM | {"momentum_decay": (-0.5,)}),
    Tried(OPTIM.RAdam, {"houses": {"lr": 0.02}, "cnn": {"lr": 1e-2}, "texts": {"lr": 3e-2}},
          {"betas": BETAS, "eps": EPS, "weight_decay": DECAYS}, LATE_ADAM),
    Tried(OPTIM.Adamax, {"houses": {"lr": 0.02}, "cnn": {"lr": 5e-3}, "texts": {"lr": 1e-2}},
          {"betas": BETAS, "eps": EPS, "weight_decay": DECAYS}, LATE_ADAM),
    Tried(OPTIM.Adagrad, {"houses": {"lr": 0.05}, "cnn": {"lr": 2e-2}, "texts": {"lr": 3e-2}},
          {"lr_decay": (1e-3, 10.0), "eps": EPS, "weight_decay": (1e-3, 10.0, 1e4),
           "initial_accumulator_value": (0.1, 1e6)}, {"lr_decay": (-0.02, -0.5), "weight_decay": (-10.0,)}),
    Tried(OPTIM.Adadelta, {"houses": {"lr": 1.0}, "cnn": {"lr": 1.0}, "texts": {"lr": 3.0}},
          {"rho": (0.0, 0.1, 0.5, 0.95, 0.9999), "eps": (0.0, 1e-3, 1.0, 1e3), "weight_decay": (1e-3, 1.0, 100.0)},
          {"rho": (1.1, -0.5), "weight_decay": (-1.0,)}),
    Tried(OPTIM.RMSprop, {"houses": {"lr": 3e-3}, "cnn": {"lr": 1e-3}, "texts": {"lr": 2e-3}},
          {"alpha": (0.0, 0.1, 0.9, 0.999, 0.999999), "momentum": (0.9, 0.99, 1.0, 1.2), "centered": (True,),
           "eps": EPS, "weight_decay": DECAYS},
          {"momentum": (1.5, -1.5), "alpha": (1.1, -0.5), "weight_decay": (-10.0,)}),
    Tried(OPTIM.Rprop, {"houses": {"lr": 1e-3}, "cnn": {"lr": 1e-4}, "texts": {"lr": 1e-4}},
          {"etas": ((0.5, 1.1), (0.5, 3.0), (0.5, 30.0), (0.9, 10.0), (0.99, 1.001)),
           "step_sizes": ((1e-6, 1e6), (1.0, 50.0), (30.0, 50.0), (1e-6, 1e-2))},
          {"etas": ((3.0, 3.0), (0.5, 30.0)), "step_sizes": ((30.0, 50.0),)}),
    Tried(OPTIM.ASGD, {"houses": {"lr": 0.05}, "cnn": {"lr": 0.3}, "texts": {"lr": 1.0}},
          {"lambd": (1e-2, 1.0, 100.0, 1e4), "alpha": (0.0, 0.1, 5.0), "t0": (1.0,),
           "weight_decay": (1e-3, 10.0, 300.0)},
          {"lambd": (-10.0, 100.0), "alpha": (-3.0,), "weight_decay": (-10.0,)}),
    Tried(OPTIM.Adafactor, {"houses": {"lr": 0.05}, "cnn": {"lr": 0.05}, "texts": {"lr": 0.05}},
          {"beta2_decay": (-0.1, -1.0, -5.0), "eps": ((None, 1.0), (None, 100.0), (1.0, 1e-3)), "d": (0.1, 10.0, 1e6),
           "weight_decay": (1e-2, 30.0, 1e3)}, {"beta2_decay": (2.0,), "weight_decay": (-30.0,)}),
    Tried(OPTIM.Muon, {"houses": {"lr": 0.02}, "cnn": {"lr": 0.02}, "texts": {"lr": 0.02}},
          {"momentum": (0.0, 0.8, 0.999, 1.0, 1.5), "weight_decay": (0.0, 10.0, 1e3), "nesterov": (False,),
           "ns_steps": (1, 3, 8), "ns_coefficients": ((2.0, -1.5, 0.5), (30.0, -5.0, 2.0)), "eps": (1e-12, 1.0),
           "adjust_lr_fn": ("match_rms_adamw",)},
          {"momentum": (1.5,), "weight_decay": (-30.0,)}),
    Tried(OPTIM.LBFGS, {"houses": {"lr": 0.1, "max_iter": 4}},
          {"max_iter": (1, 20), "history_size": (1, 100), "tolerance_grad": (0.0, 1e3), "tolerance_change": (0.0, 1e3),
           "line_search_fn": ("strong_wolfe",)}),
)  # fmt: skip
