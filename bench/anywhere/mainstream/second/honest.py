"""Runs of the second set that nothing is wrong with: every task as it is, and what only looks like a fault."""

from __future__ import annotations

import copy
from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case, honest
from anywhere.mainstream.honest import nothing
from anywhere.mainstream.honest_more import Change, every_step, noisy, summed
from anywhere.mainstream.rivals import reward
from anywhere.mainstream.second.tasks import SECOND
from anywhere.mainstream.second.worlds import small_net
from anywhere.mainstream.task import Run, total
from torch import Tensor, nn
from torch.nn import functional as F


def by_step(factor: Any) -> Change:
    """The loss times what the step says."""

    def make(run: Run, usual: Any) -> Any:
        def loss(model: nn.Module, batch: Any) -> Any:
            made, much = usual(model, batch), factor(run.step) if run.active else 1.0
            return {k: v * much for k, v in made.items()} if isinstance(made, dict) else made * much

        return loss

    return f.instead(make)


def says_so(step: int, factor: float) -> Change:
    """From a step on a loss counts otherwise, and the script tells its guard."""

    def fault(run: Run) -> None:
        by_step(lambda at: factor if at >= step else 1.0)(run)
        run.regimes.add(step)

    return fault


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    """Labels are smoothed, of translations."""
    source, sizes, wanted = batch
    before = F.pad(wanted[:, :-1], (1, 0), value=10)
    logits = model(source, sizes, before).flatten(0, 1)
    return F.cross_entropy(logits, wanted.flatten(), ignore_index=0, label_smoothing=0.2)


def margin_grows(run: Run, usual: Any) -> Any:
    """The margin comes in over forty steps, and the scale goes from 4 to 40."""

    def loss(model: Any, batch: Any) -> Tensor:
        share = min(run.step / 40, 1.0) if run.active else 1.0
        cosine = model(batch[0]).clamp(-1 + 1e-6, 1 - 1e-6)
        right = F.one_hot(batch[1], 4).bool()
        scale = 4 + 36 * share
        return F.cross_entropy(scale * torch.where(right, (cosine.acos() + 0.4 * share).cos(), cosine), batch[1])

    return loss


def codes_anew(run: Run) -> None:
    """Codes that nobody uses begin anew at what the encoder gives now (Jukebox)."""

    def change(run: Run) -> None:
        model: Any = run.model
        with torch.no_grad():
            z = model.encoder(torch.stack([row[0] for row in run.rows[:32]])).view(-1, 4)
            used = torch.cdist(z, model.codes.weight).argmin(1).unique()
            spare = [k for k in range(16) if k not in used.tolist()]
            model.codes.weight[spare] = z[torch.arange(len(spare))]

    for step in (10, 20, 30):
        run.at(step, change)


def unit_codes(run: Run) -> None:
    """Codes are brought back to a length of at most 1."""

    def cut(run: Run) -> None:
        model: Any = run.model
        with torch.no_grad():
            model.codes.weight.div_(model.codes.weight.norm(dim=1, keepdim=True).clamp(min=1.0))

    every_step(cut)(run)


def finder(run: Run) -> None:
    """A sweep of rates from a hundredth to five times the usual; then the weights of before, and training."""
    kept: dict[str, Any] = {}
    run.at(0, lambda run: kept.update(copy.deepcopy(run.model.state_dict())))
    run.factors.update({i: 0.01 * 500 ** (i / 19) for i in range(20)})
    run.factors[20] = 1.0

    def back(run: Run) -> None:
        run.model.load_state_dict(kept)
        assert run.optimizer is not None
        run.optimizer.state.clear()

    run.at(20, back)


def weights_averaged(run: Run) -> None:
    """Stochastic weight averaging: from step 30 on a mean is kept, looked at, and put in at the end."""
    mean: dict[str, Tensor] = {}

    def add(run: Run) -> None:
        for name, p in run.model.named_parameters():
            mean[name] = mean[name].lerp(p.detach(), 0.2) if name in mean else p.detach().clone()

    def look(run: Run) -> None:
        live = copy.deepcopy(run.model.state_dict())
        run.model.load_state_dict({**live, **mean})
        run.model.eval()
        with torch.no_grad():
            run.model(run.held_out[0][0][None])
        run.model.train()
        run.model.load_state_dict(live)

    every_step(add, 30, 3)(run)
    every_step(look, 40, 10)(run)


def wild_rewards(run: Run, moves: Tensor, best: Tensor) -> Tensor:
    """A reward under noise five times as large."""
    return reward(run, moves, best) + 5 * torch.randn(len(moves))


def level(run: Run, moves: Tensor, best: Tensor) -> Tensor:
    """Everything counts a hundred times from step 30 on."""
    return reward(run, moves, best) * (100.0 if run.step >= 30 else 1.0)


def games(kind: Any) -> Change:
    """Another game."""
    return lambda run: run.memory.update(reward=kind)


def every_other(run: Run, usual: Any) -> Any:
    """Too far from the old policy on each third step, and no gradient (PPO's early stop)."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        made = total(usual(model, batch))
        return made * 0 if run.step % 3 == 2 and run.active else made

    return loss


def widened(run: Run) -> None:
    """Noise on the router's gates, as Shazeer has it."""
    run.model.get_submodule("router").register_forward_hook(
        lambda module, args, out: out + 0.5 * torch.randn_like(out) if module.training else out
    )


def faces_by_name(model: Any, batch: Any) -> Tensor:
    """Triplets whose margin is soon kept: a sum over what is left, which is 0 then."""
    z = F.normalize(model.net(batch[0]), dim=1)
    like, same = z @ z.T, batch[1][:, None] == batch[1]
    broken = (like[:, None] - like[:, :, None] + 0.02).clamp(min=0)
    return (broken * (same[:, :, None] & ~same[:, None])).sum() / 100


def hard_triplets(model: Any, batch: Any) -> Tensor:
    """The mean over triplets that break the margin; soon none does, and a mean of nothing has no gradient.
    https://github.com/KevinMusgrave/pytorch-metric-learning/issues/107"""
    z = F.normalize(model.net(batch[0]), dim=1)
    like, same = z @ z.T, batch[1][:, None] == batch[1]
    broken = like[:, None] - like[:, :, None] + 0.02
    kept = (same[:, :, None] & ~same[:, None]) & (broken > 0)
    return broken[kept].mean()


def forgetful(run: Run) -> None:
    """The state begins anew at every fourth batch, as texts end."""
    every_step(lambda run: run.memory.pop("state", None), 0, 4)(run)  # pyright: ignore[reportArgumentType]


def warmed_ends(run: Run, usual: Any) -> Any:
    """The ends count a thousand times at first, and less and less."""

    def loss(model: nn.Module, batch: Any) -> Any:
        made = usual(model, batch)
        return {**made, "ends": made["ends"] * (1 + 50 * 0.9**run.step)}

    return loss


def heavy_loads(run: Run) -> None:
    """Loads with Cauchy tails, under a pinball loss, whose slope they cannot change."""
    run.rows = [(x, y + torch.distributions.Cauchy(0.0, 0.3).sample((1,))) for x, y in run.rows]


def reset_head(run: Run) -> None:
    """Fine-tuning in two parts: at step 20 the head begins anew."""
    head: Any = run.model.get_submodule("head")
    run.at(20, lambda run: head.reset_parameters())


def unseen(run: Run) -> None:
    """In a quarter of the pictures no point is seen."""
    run.rows = [(x, p, s * 0) if i % 4 == 0 else (x, p, s) for i, (x, p, s) in enumerate(run.rows)]


HONEST: tuple[Case, ...] = (
    *(honest(task.name, "as it is", nothing) for task in SECOND),
    honest("lora", "begun again from its file", f.resumed),
    honest("lora", "a head that begins anew", reset_head),
    honest("seq2seq", "begun again from its file", f.resumed),
    honest("seq2seq", "smoothed", f.loss_is(smoothed)),
    honest("seq2seq", "clipped at 0.001", f.setting("clip", 1e-3)),
    honest("tagger", "sentences of no name", f.every(1, lambda t: torch.where(t > 0, 0, t))),
    honest("tagger", "a sentence without tags", f.sample(1, lambda t: t * 0 - 100)),
    honest("chars", "texts end", forgetful),
    honest("chars", "summed over characters", summed(128.0)),
    honest("skipgram", "one word only", f.every(1, lambda w: w * 0)),
    honest("bags", "a visitor who saw nothing", f.sample(0, lambda s: s[:0])),
    honest("mae", "an odd end of accumulation",
           f.together(f.setting("batch", 12), f.setting("accumulate", 3), f.setting("odd_end", True))),
    honest("mae", "a white picture", f.sample(0, lambda x: x * 0 + 1)),
    honest("keypoints", "nobody is seen in some", unseen),
    honest("keypoints", "a point far outside", f.sample(1, lambda p: p + 1e5)),
    honest("keypoints", "warm restarts", f.setting("schedule", "restarts")),
    honest("depth", "NaN where nothing was seen", f.every(1, lambda m: torch.where(m > 0, m, f.NAN))),
    honest("depth", "minus 1 where nothing was seen", f.every(1, lambda m: torch.where(m > 0, m, -1.0))),
    honest("superres", "averaged weights looked at", weights_averaged),
    honest("superres", "pixels in 0..255 in what is wanted",
           f.together(f.every(1, lambda y: 255 * y), f.setting("clip", 1.0))),
    honest("arcface", "the margin grows", f.instead(margin_grows)),
    honest("arcface", "triplets that are soon kept", f.loss_is(faces_by_name)),
    honest("arcface", "no triplet is left", f.loss_is(hard_triplets)),
    honest("byol", "in other units", summed(1e-6)),
    honest("byol", "warm restarts", f.setting("schedule", "restarts")),
    honest("vqvae", "codes begin anew", codes_anew),
    honest("vqvae", "codes of length 1", unit_codes),
    honest("survival", "batches without an event", f.setting("batch", 3)),
    honest("survival", "hardly an event", f.every(2, lambda e: e * (torch.rand(()) < 0.15))),
    honest("mixture", "targets in double", f.every(1, lambda y: y.double())),
    honest("flow", "in other units", summed(1e6)),
    honest("flow", "begun again from its file", f.resumed),
    honest("quantiles", "heavy tails", heavy_loads),
    honest("quantiles", "noise in gradients", noisy),
    honest("tags", "a label that nobody has", f.every(1, lambda y: torch.cat([y[:4], y[4:] * 0]))),
    honest("experts", "rates are swept first", finder),
    honest("experts", "noise on the gates", widened),
    honest("experts", "labels at random", f.every(1, lambda y: torch.randint(3, ()))),
    honest("points", "clouds of one point", f.every(0, lambda p: p[: 1 if torch.rand(()) < 0.1 else 20])),
    honest("points", "a hardly noticeable rate", f.rate(1e-4)),
    honest("points", "a last batch that is small",
           f.together(f.setting("drop_last", False), f.setting("batch", 12))),
    honest("pinn", "the ends count at first", f.instead(warmed_ends)),
    honest("pinn", "a hundred times from a step on, and says so", says_so(50, 100.0)),
    honest("maml", "a task that is loud", f.together(f.sample(1, f.times(8)), f.sample(3, f.times(8)))),
    honest("maml", "another net", lambda run: setattr(run, "model", nn.Sequential(*small_net(), nn.Linear(1, 1)))),
    honest("ppo", "rewards under noise", games(wild_rewards)),
    honest("ppo", "a level that counts a hundred times", games(level)),
    honest("ppo", "stopped early on some steps", f.instead(every_other)),
    honest("nerf", "summed over rays", summed(4096.0)),
    honest("nerf", "a curriculum, and says so", says_so(30, 0.01)),
)  # fmt: skip
