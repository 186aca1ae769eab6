"""More runs that nothing is wrong with: weights that a loop writes, losses of odd sizes, tasks in turn, averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case, honest
from anywhere.mainstream.honest import rare, rewards, wasserstein
from anywhere.mainstream.rivals import NOISE
from anywhere.mainstream.task import Run, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

Change = Callable[[Run], None]


def every_step(change: Change, start: int = 0, step: int = 1) -> Change:
    """``change`` before each step from ``start`` on, or before one in ``step``."""

    def fault(run: Run) -> None:
        for at in range(start, run.task.steps, step):
            run.at(at, change)

    return fault


def clamped(run: Run) -> None:
    """WGAN's first tutorial: after each step the critic's weights are cut off at 0.05."""
    run.rivals["critic"] = wasserstein

    def cut(run: Run) -> None:
        with torch.no_grad():
            for p in run.model.get_submodule("critic").parameters():
                p.clamp_(-0.05, 0.05)

    every_step(cut)(run)


def unit_embeddings(run: Run) -> None:
    """After each step the tables' rows are brought back to a length of at most 1."""

    def cut(run: Run) -> None:
        with torch.no_grad():
            for name in ("user", "film"):
                table: Any = run.model.get_submodule(name)
                table.weight.div_(table.weight.norm(dim=1, keepdim=True).clamp(min=1.0))

    every_step(cut)(run)


def swapped(run: Run) -> None:
    """Every ten steps the averaged weights are put in, looked at, and the live ones put back."""

    def look(run: Run) -> None:
        live = copy.deepcopy(run.model.state_dict())
        with torch.no_grad():
            for p in run.model.parameters():
                p.mul_(0.9)
        run.model.eval()
        with torch.no_grad():
            run.model(run.held_out[0][0][None])
        run.model.load_state_dict(live)
        run.model.train()

    every_step(look, 10, 10)(run)


def new_last_layer(run: Run) -> None:
    """The last layer begins anew at step 30, as agents do against overfitting to their first games."""

    def change(run: Run) -> None:
        for name in ("policy", "value"):
            layer: Any = run.model.get_submodule(name)
            layer.reset_parameters()

    run.at(30, change)


def pruned(run: Run) -> None:
    """Half of a layer's weights are pruned at step 30."""
    run.at(30, lambda run: prune.l1_unstructured(run.model.get_submodule("2"), "weight", 0.5))


def pretrained(run: Run) -> None:
    """After the guard was attached the weights of another run are loaded."""
    other = Run(run.task, 77, "plain").model.state_dict()
    run.at(1, lambda run: run.model.load_state_dict(other))  # pyright: ignore[reportArgumentType]


def unfrozen(run: Run) -> None:
    """The optimizer is given the first layer at step 20."""
    first: Any = run.model.get_submodule("1")
    first.requires_grad_(False)
    usual = run.task.optimizer

    def optimizer(_: Any, **options: Any) -> torch.optim.Optimizer:
        return usual([p for p in run.model.parameters() if p.requires_grad], **options)

    run.task = _with(run.task, optimizer=optimizer)

    def thaw(run: Run) -> None:
        first.requires_grad_(True)
        run.optimizer.add_param_group({"params": list(first.parameters()), "lr": 1e-3})  # pyright: ignore

    run.at(20, thaw)


def _with(task: Task, **changes: Any) -> Task:
    return Task(**{**vars(task), **changes})


def in_turn(run: Run, usual: Any) -> Any:
    """Two tasks take turns; the losses of one are five hundred times those of the other."""

    def loss(model: nn.Module, batch: Any) -> Any:
        made = usual(model, batch)
        return made["class"] if run.step % 2 or not run.active else 500 * made["number"]

    return loss


def claims(run: Run) -> None:
    """Insurance: nearly all targets are 0, and one in forty is 30 to 60."""
    run.rows = [(x, y * 0 + (30 + 30 * torch.rand(1)) * (torch.rand(1) < 0.025)) for x, y in run.rows]


def summed(scale: float) -> Change:
    """A loss that is summed over everything, in other units."""

    def make(run: Run, usual: Any) -> Any:
        return lambda model, batch: usual(model, batch) * scale

    return f.instead(make)


def density(model: nn.Module, batch: Any) -> Tensor:
    """A Gaussian's negative log-likelihood with a spread of its own, which goes far below 0."""
    mean = model(batch[0])
    spread = (0.05 + 0.5 * (mean.detach() - batch[1]).abs()).clamp(min=1e-3)
    return F.gaussian_nll_loss(mean, batch[1], spread.square())


def longer(run: Run, usual: Any) -> Any:
    """Texts grow from 4 words to 12; losses are summed over words."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        size = min(12, 4 + run.step // 6) if run.active else 12
        words = batch[0][:, : size + 1]
        return model(words[:, :-1], words[:, 1:])[1] * size

    return loss


def margins(model: nn.Module, batch: Any) -> Tensor:
    """Triplets with a margin that is soon kept: 0 and no gradient, batch after batch."""
    one, two, same = batch
    away = F.pairwise_distance(model(one), model(two))
    return (same * (away - 0.5).clamp(min=0) + (1 - same) * (0.2 - away).clamp(min=0)).mean()


def clip_scale(model: Any, batch: Any) -> Tensor:
    """CLIP's temperature is learned: the logits' scale is the exponent of a weight."""
    x = batch[0]
    if not hasattr(model, "logit_scale"):
        model.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.6)))
    one, two = F.normalize(model(x), dim=1), F.normalize(model(x + 0.1 * torch.randn_like(x)), dim=1)
    return F.cross_entropy(model.logit_scale.exp().clamp(max=100) * one @ two.T, torch.arange(len(x)))


def scaled_first(run: Run) -> None:
    """`clip_scale`, whose weight is there before the optimizer is made."""
    run.model.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.6)))
    run.loss = clip_scale


def noisy(run: Run) -> None:
    """Noise is added to gradients after each backward pass."""

    def add(run: Run) -> None:
        for p in run.model.parameters():
            if p.grad is not None:
                p.grad.add_(0.01 * torch.randn_like(p.grad))

    run.after_backward = add


def by_value(run: Run) -> None:
    """Gradients are cut off value by value."""
    run.after_backward = lambda run: nn.utils.clip_grad_value_(run.model.parameters(), 0.05)


def harder(run: Run) -> None:
    """Each epoch's pictures are noisier than those of the one before."""

    def draw(index: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (row[0] + 0.02 * run.step * torch.rand_like(row[0]), *row[1:])

    run.draw = draw


def penalised(gan: Any, batch: Any) -> Tensor:
    """WGAN-GP: a penalty on the critic's slope between real and made ones."""
    made = gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid().detach().view_as(batch[0])
    share = torch.rand(len(made), 1, 1, 1)
    between = (share * batch[0] + (1 - share) * made).requires_grad_(True)
    with torch.enable_grad():
        slope = torch.autograd.grad(gan.critic(between).sum(), between, create_graph=True)[0]
    length = slope.flatten(1).norm(dim=1)
    return gan.critic(made).mean() - gan.critic(batch[0]).mean() + 10 * (length - 1).square().mean()


def soft_target(run: Run) -> None:
    """The target network follows by one part in a hundred at each step."""
    run.memory["target"] = copy.deepcopy(run.model).requires_grad_(False)

    def follow(run: Run) -> None:
        with torch.no_grad():
            for slow, p in zip(run.memory["target"].parameters(), run.model.parameters(), strict=True):
                slow.lerp_(p, 0.01)

    def prepare(run: Run, batch: Any) -> Any:
        follow(run)
        with torch.no_grad():
            return batch[0], batch[1], batch[2] + 0.9 * run.memory["target"](batch[3]).amax(1)

    run.prepare = prepare


def sgd(rate: float) -> Change:
    """Plain SGD."""

    def fault(run: Run) -> None:
        run.task, run.options = _with(run.task, optimizer=torch.optim.SGD), {"lr": rate}

    return fault


def climbs(run: Run) -> None:
    """The gain is shown, and the optimizer told to go up it."""
    usual = run.loss
    run.loss = lambda model, batch: -usual(model, batch)
    run.options["maximize"] = True


HONEST_MORE: tuple[Case, ...] = (
    honest("gan", "critic's weights cut off", clamped),
    honest("gan", "a penalty on the slope", lambda run: run.rivals.update(critic=penalised)),
    honest("films", "embeddings of length 1", unit_embeddings),
    honest("cnn", "averaged weights looked at", swapped),
    honest("policy", "a new last layer", new_last_layer),
    honest("policy", "a gain that is maximised", climbs),
    honest("policy", "first rewards are rare, plain SGD", f.together(rewards(rare), sgd(0.05))),
    honest("customers", "pruned under way", pruned),
    honest("cnn", "weights of another run loaded", pretrained),
    honest("siamese", "margins that are kept", f.loss_is(margins)),
    honest("distill", "another batch size", f.setting("batch", 20)),
    honest("simclr", "a temperature that is learned", scaled_first),
    honest("simclr", "a layer is thawed", unfrozen),
    honest("two_tasks", "tasks in turn", f.instead(in_turn)),
    honest("houses", "claims", claims),
    honest("houses", "a density", f.loss_is(density)),
    honest("houses", "in other units", summed(1e9)),
    honest("vae", "in small units", summed(1e-9)),
    honest("gpt", "texts grow", f.instead(longer)),
    honest("cnn", "noise in gradients", noisy),
    honest("forecast", "gradients cut off by value", by_value),
    honest("cnn", "harder each epoch", harder),
    honest("dqn", "a target that follows slowly", soft_target),
    honest("graphs", "plain SGD", sgd(0.03)),
    honest("texts", "plain SGD", sgd(0.3)),
    honest("unet", "warm restarts", f.setting("schedule", "restarts")),
    honest("vit", "a step schedule", f.setting("schedule", "step")),
    honest("detector", "accumulated", f.together(f.setting("accumulate", 2), f.setting("batch", 4))),
    honest("ctc", "clipped at 1", f.setting("clip", 1.0)),
)
