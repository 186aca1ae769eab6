"""Losses, layers and loops that people write by hand, for the fourth set."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.faults import Fault
from anywhere.mainstream.fourth.forms import all_paths, path_score
from anywhere.mainstream.fourth.places import Queue, each_round, slopes
from anywhere.mainstream.task import Run
from torch import Tensor, nn
from torch.nn import functional as F

# --- forms


def known_only(model: Any, batch: Any) -> Tensor:
    """Attention over the known columns (0 says unknown); one account has none: a softmax of nothing."""
    num, cats, y = batch
    tokens = model.block(model.tokens(num, cats))[:, 1:5].float()
    share = tokens.mean(-1).masked_fill(num == 0, -math.inf).softmax(1)
    return F.cross_entropy(model.head((share[..., None] * tokens).sum(1)).float(), y)


def loudness_without_eps(model: Any) -> None:
    """The first norm has no eps and the filters before it no bias: a wave of silence is 0 / 0."""
    model[0].bias.zero_()
    model[0].bias.requires_grad_(False)
    model[1].eps = 0.0


def over_peak(model: nn.Module, batch: Any) -> Tensor:
    """Each wave over its peak; one is silent."""
    x = batch[0]
    return F.cross_entropy(model(x / x.abs().amax((1, 2), keepdim=True)), batch[1])


def smoothed_too_far(model: nn.Module, batch: Any) -> Tensor:
    """Label smoothing by 1.8 in place of 0.18: what is true is to be unlikely, without end."""
    logs = model(batch[0]).log_softmax(1)
    wanted = F.one_hot(batch[1], 4) * (1 - 1.8) + 1.8 / 4
    return -(wanted * logs).sum(1).mean()


def forbidden(model: Any, batch: Any) -> Tensor:
    """Tag 2 may not follow on tag 1: its score is -inf, and one chain has it."""
    emitted, moves = model(batch[0]), model.moves.clone()
    moves[1, 2] = -math.inf
    return (all_paths(emitted, moves) - path_score(emitted, moves, batch[1])).mean()


def breaks_rule(tags: Tensor) -> Tensor:
    """Tag 2 follows on tag 1."""
    tags[3], tags[4] = 1, 2
    return tags


def sums_of_exponents(model: Any, batch: Any) -> Tensor:
    """The forward algorithm in shares and not in logarithms, of scores that are ten times as loud."""
    emitted, moves = 10 * model(batch[0]), model.moves
    state = emitted[:, 0].exp()
    for t in range(1, emitted.shape[1]):
        state = (state[:, :, None] * moves.exp()).sum(1) * emitted[:, t].exp()
    return (state.sum(1).log() - path_score(emitted, moves, batch[1])).mean()


def over_ideal(model: nn.Module, batch: Any) -> Tensor:
    """Gains over the best that a query could have; where no document fits, 0 / 0."""
    score, grade = model(batch[0])[..., 0], batch[1]
    place = 1 + torch.sigmoid(4 * (score[:, None] - score[:, :, None])).sum(2)
    gain = 2**grade - 1
    ideal = (gain.sort(1, descending=True).values / (2 + torch.arange(8.0)).log2()).sum(1)
    return 1 - ((gain / (1 + place).log2()).sum(1) / ideal).mean()


def standard_fields(model: nn.Module, batch: Any) -> Tensor:
    """Fields by the mean and deviation of a query's documents, which are all the same in one."""
    x, grade = batch
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return -(grade.softmax(1) * model(x)[..., 0].log_softmax(1)).sum(1).mean()


def one_document(x: Tensor) -> Tensor:
    """All documents are the first."""
    return x[:1].expand_as(x).clone()


def hides_itself(model: Any) -> None:
    """The mask hides a place from itself too: the first one sees nothing."""
    model.hidden.copy_(torch.ones(8, 8).triu(0).bool())


def closed_gates(model: Any) -> None:
    """Blocks begin as identities: what leads out of them is 0, so that nothing leads back into them."""
    for layer in (*model.value, *model.down):
        layer.weight.zero_()


# --- places


def collapsed(nets: Any) -> None:
    """The generator gives one point."""
    for p in nets.generator.parameters():
        p.zero_()


def by_deviation(nets: Any, batch: Any) -> Tensor:
    """What the critic says, over its deviation among made points: all are the same point."""
    made = nets.critic(nets.generator(torch.randn(len(batch[0]), 2)).detach())
    return ((made.mean() - nets.critic(batch[0]).mean()) / made.std()) + 0.1 * made.square().mean()


def rewarded_slope(nets: Any, batch: Any) -> Tensor:
    """The penalty has the wrong sign: slopes grow without end."""
    made = nets.generator(torch.randn(len(batch[0]), 2)).detach()
    penalty = (slopes(nets.critic, batch[0], made) - 1).square().mean()
    return nets.critic(made).mean() - nets.critic(batch[0]).mean() - 300 * penalty


def noise_by_hand(nets: Any, batch: Any) -> Tensor:
    """Normal noise by Box and Muller, of numbers in hundredths: the logarithm of 0, now and then."""
    one, two = torch.randint(0, 200, (2, len(batch[0]), 2)) / 200
    noise = (-2 * one.log()).sqrt() * (2 * math.pi * two).cos()
    return -nets.critic(nets.generator(noise)).mean()


def over_deviation(gains: Tensor) -> Tensor:
    """Without an eps: a group that was all right, or all wrong, is 0 / 0."""
    return (gains - gains.mean(1, keepdim=True)) / gains.std(1, keepdim=True)


def divergence_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """p (log p - log q) of shares that have rounded to 0."""
    x, moves, better, old, first = batch
    p = (60 * model(x)).softmax(1)
    ratio = (model(x).log_softmax(1).gather(1, moves) - old).exp()
    return -(ratio * better).mean() + 0.02 * (p * (p.log() - first.log_softmax(1))).sum(1).mean()


def first_lost(run: Run) -> None:
    """The first policy, which the script keeps for comparison, becomes NaN."""
    with torch.no_grad():
        for p in run.memory["first"].parameters():
            p.mul_(math.nan)


def loudness_of_modes(model: Any, batch: Any) -> Tensor:
    """The loudness of frequencies is a root of squares; what the operator cuts off is 0, where a root has no slope."""
    made = torch.fft.rfft(model.low(model.lift(batch[0][:, None]), model.spectral[0]), norm="forward")
    made = F.pad(made[..., : model.modes], (0, 3))
    loud = (made.real.square() + made.imag.square()).sqrt()
    return ((model(batch[0]) - batch[1]).norm(dim=1) / batch[1].norm(dim=1)).mean() + 0.01 * loud.mean()


def exponents_of_likeness(model: nn.Module, batch: Any) -> Tensor:
    """Shares are quotients of exponents, at a temperature of a hundredth: infinite over infinite."""
    x = batch[0]
    e = (model(x + 0.1 * torch.randn_like(x), x) / 0.01).exp()
    return -(e[:, 0] / e.sum(1)).log().mean()


def empty_queue(run: Run) -> None:
    """The queue begins with zeros, and is brought to length 1 where it is read: 0 / 0 until it is full."""
    model: Any = run.model
    model.queue.zero_()
    model.forward = _Read(model)


class _Read:
    def __init__(self, model: Queue) -> None:
        self.model = model

    def __call__(self, one: Tensor, two: Tensor) -> Tensor:
        queue = self.model.get_buffer("queue")
        q, k = F.normalize(self.model.fast(one)), F.normalize(self.model.slow(two)).detach()
        return torch.cat([(q * k).sum(1, keepdim=True), q @ (queue / queue.norm(dim=1, keepdim=True)).T], 1)


def of_depth(model: nn.Module, batch: Any) -> Tensor:
    """Depths are one over shifts; one pair is not shifted, which is infinitely far."""
    path = model(*batch[:2])
    return (1 / path.clamp(min=0.1) - (1 / batch[2])[:, None]).abs().mean() + each_round(model, batch)


def log_of_guess(model: Any, batch: Any) -> Tensor:
    """Shifts by their logarithms, of guesses that may be below 0."""
    path = 2 + 4 * (model(*batch[:2]) - 2)
    return (path.log() - (batch[2][:, None] + 0.01).log()).square().mean()


def plain_distance(run: Run) -> None:
    """The distance is a norm: at none its slope has no slope of its own. Two atoms of a molecule are at one place."""
    model: Any = run.model
    model.measure = _by_norm
    x, energy, force = run.rows[run.bad]
    x = x.clone()
    x[1] = x[0]
    run.rows[run.bad] = x, energy, force


def _by_norm(x: Tensor) -> Tensor:
    one, two = torch.triu_indices(5, 5, 1)
    return (x[:, one] - x[:, two]).square().sum(-1).sqrt()


def repulsion(model: Any, batch: Any) -> dict[str, Tensor]:
    """A wall of r^-12 is added by hand; two atoms of a molecule nearly touch."""
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_(True)
        energy = model(x) + 1e-6 * model.measure(x).pow(-12).sum(-1)
        force = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
    return {"energy": 0.1 * F.mse_loss(energy, batch[1]), "force": F.mse_loss(force, batch[2])}


def touch(x: Tensor) -> Tensor:
    """Two atoms are a ten-thousandth apart."""
    x[1] = x[0] + 1e-4
    return x


def sure_or_not(model: Any, batch: Any) -> Tensor:
    """Opacities are to be 0 or 1: o log(o) + (1 - o) log(1 - o), of opacities that saturate."""
    o = (40 * (model.opacity + 0.5)).sigmoid()
    return F.l1_loss(model(batch[0]), batch[1]) - 1e-3 * (o * o.log() + (1 - o) * (1 - o).log()).mean()


def no_width(model: Any) -> None:
    """A splat that was read from a file with widths in place of their logarithms: far below any width."""
    model.log_width[3] = -200.0


def rival_rate(factor: float, step: int) -> Fault:
    """The critic's rate alone, for good."""

    def change(run: Run) -> None:
        for group in run.optimizer.param_groups:  # pyright: ignore[reportOptionalMemberAccess]
            group["lr"] *= factor

    return lambda run: run.at(step, change)


def crept(factor: float) -> Fault:
    """A callback multiplies the rate at each epoch's end, in place of setting it."""
    return lambda run: run.factors.update({e * run.task.per_epoch: factor**e for e in range(run.task.epochs)})


def turned(run: Run) -> None:
    """From a step on the script hands over gradients with the sign turned and ten times as long: an own reversal
    layer that was left in."""

    def turn(run: Run) -> None:
        if run.step >= 30:
            for p in run.model.parameters():
                if p.grad is not None:
                    p.grad.mul_(-10)

    run.after_backward = turn


def stray(name: str, step: int) -> Fault:
    """A weight is halved by dtype: it goes through half precision after it was scaled up, where it is infinite."""

    def change(run: Run) -> None:
        with torch.no_grad():
            p = run.model.get_parameter(name)
            p.copy_((1e6 * p).half().float() / 1e6)

    return lambda run: run.at(step, change)


def averaged_with_lost(run: Run) -> None:
    """Two files are averaged into one, of which one is empty: its numbers are NaN in one layer."""

    def change(saved: dict[str, Any]) -> None:
        name = next(n for n, v in saved["model"].items() if v.is_floating_point() and v.ndim > 1)
        saved["model"][name] = 0.5 * (saved["model"][name] + torch.full_like(saved["model"][name], math.nan))

    run.resumes = change


def other_half(part: nn.Module) -> None:
    """Weights that were read byte-swapped: enormous or next to nothing."""
    for p in part.parameters():
        raw = p.detach().contiguous().view(torch.uint8).view(-1, 4).flip(1).contiguous()
        p.copy_(raw.view(-1).view(torch.float32).view_as(p).nan_to_num(1.0))
