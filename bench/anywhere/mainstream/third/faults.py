"""Losses and layers that people write by hand; with the thread that one is known from, where there is one."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.faults import Fault
from anywhere.mainstream.task import Run
from anywhere.mainstream.third.scenes import SAM, cell_of, decoded, of_scan
from anywhere.mainstream.third.signals import Vocoder, log_share, negative_binomial, spectrum
from anywhere.mainstream.third.worlds import RiemannianSGD, denoised, squashed
from torch import Tensor, nn
from torch.nn import functional as F

# --- pictures


def kept_margins(model: nn.Module, batch: Any) -> Tensor:
    """A hinge; once every margin is kept, it has no slope."""
    return F.multi_margin_loss(model(batch[0]), batch[1], margin=0.05)


class ByLength(SAM):
    """The way up is the slope over its length, without an eps: 0 / 0 where there is no slope."""

    eps = 0.0


def climbs_by_length(run: Run) -> None:
    """`ByLength`."""
    run.task = type(run.task)(**{**vars(run.task), "optimizer": ByLength})


def hot(model: nn.Module, batch: Any) -> Tensor:
    """The temperature is not held: https://github.com/kornia/kornia/issues/3481"""
    seen, read, scale = model(*batch)
    return F.cross_entropy(scale * seen @ read.T, torch.arange(len(seen)))


def shares_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of shares that have rounded to 0."""
    seen, read, scale = model(*batch)
    return -((60 * scale * seen @ read.T).softmax(1).diagonal()).log().mean()


def captions_by_length(model: Any, batch: Any) -> Tensor:
    """Captions are the mean of their known words, over how many there are; one has none."""
    seen, _, scale = model(*batch)
    known = (batch[1] < 11).float()[..., None]
    read = F.normalize((model.words(batch[1]).float() * known).sum(1) / known.sum(1), dim=-1)
    return F.cross_entropy(scale.clamp(max=100) * seen @ read.T, torch.arange(len(seen)))


def ciou_by_hand(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The form is a quotient of width and height, and one box has neither.
    https://github.com/pythonlessons/TensorFlow-2.x-YOLOv3/issues/144, https://github.com/tensorflow/addons/pull/914"""
    out, box = model(batch[0]).float(), batch[1]
    made = decoded(out)[torch.arange(len(box)), cell_of(box)]
    form = torch.atan(box[:, 2] / box[:, 3]) - torch.atan(made[:, 2] / made[:, 3])
    obj = F.binary_cross_entropy_with_logits(out[:, 0].flatten(1), F.one_hot(cell_of(box), 9).float())
    return {"box": F.smooth_l1_loss(made, box) + form.square().mean(), "obj": obj}


def size_by_exp(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Sizes are exponents, of a layer that is too loud."""
    out, box = model(batch[0]).float(), batch[1]
    at = torch.arange(len(box)), cell_of(box)
    made, raw = decoded(out)[at], out[:, 3:].flatten(2).transpose(1, 2)[at]
    obj = F.binary_cross_entropy_with_logits(out[:, 0].flatten(1), F.one_hot(at[1], 9).float())
    return {"box": F.smooth_l1_loss(made[:, :2], box[:, :2]) + ((300 * raw).exp() - box[:, 2:]).square().mean(),
            "obj": obj}  # fmt: skip


def log_of_overlap(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """UnitBox's -log(IoU); boxes that do not touch have none."""
    out, box = model(batch[0]).float(), batch[1]
    made = decoded(out)[torch.arange(len(box)), cell_of(box)] * torch.tensor([1.0, 1.0, 0.3, 0.3])
    low = torch.maximum(made[:, :2] - made[:, 2:] / 2, box[:, :2] - box[:, 2:] / 2)
    high = torch.minimum(made[:, :2] + made[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2)
    both = (high - low - 0.5).clamp(min=0).prod(1)
    obj = F.binary_cross_entropy_with_logits(out[:, 0].flatten(1), F.one_hot(cell_of(box), 9).float())
    return {"box": -(both / (made[:, 2:].prod(1) + box[:, 2:].prod(1) - both)).log().mean(), "obj": obj}


def in_pixels_of_half(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The length of what boxes of a large picture are off, in half: as https://github.com/Megvii-BaseDetection/YOLOX/issues/1565"""
    out, box = model(batch[0]).float(), batch[1]
    made = decoded(out)[torch.arange(len(box)), cell_of(box)]
    off = (400 * (made - box)).half().square().sum(1).sqrt()
    obj = F.binary_cross_entropy_with_logits(out[:, 0].flatten(1), F.one_hot(cell_of(box), 9).float())
    return {"box": off.float().mean() / 400, "obj": obj}


def by_largest(model: nn.Module, batch: Any) -> Tensor:
    """Each scan over its largest number; one is empty."""
    k, kept, image = batch
    most = k.abs().amax((1, 2), keepdim=True)
    return of_scan(model, (k / most, kept, image))


def powers_of_two(run: Run) -> None:
    """The weights' step is rounded to a power of two, of a number that may fall below 0.
    https://github.com/ZouJiu1/LSQplus/issues/12"""
    model: Any = run.model
    for at in (1, 3):
        layer = model[at]
        layer.forward = _Powers(layer)
        layer.pace.data.mul_(0.05)


class _Powers:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        log = layer.pace.log2()
        pace = 2 ** (log + (log.round() - log).detach())
        w = (layer.inner.weight / pace).clamp(-layer.most - 1, layer.most)
        return F.linear(x, (w + (w.round() - w).detach()) * pace, layer.inner.bias)


def no_pace(model: Any) -> None:
    """A weights' step that nobody has set."""
    model[3].pace.zero_()


# --- series


def sigmoid_log(model: Any, batch: Any) -> Tensor:
    """The logarithm of a sigmoid that has rounded to 0."""
    better, worse, asked = batch
    now = log_share(model.policy, better, asked) - log_share(model.policy, worse, asked)
    return -(20 * now).sigmoid().log().mean()


def mean_share(model: Any, batch: Any) -> Tensor:
    """The mean over an answer's words; one has none. https://github.com/modelscope/ms-swift/issues/3276"""
    better, worse, asked = batch
    there = (torch.arange(9) >= asked[:, None] - 1).float()

    def mean(words: Tensor) -> Tensor:
        each = model.policy(words[:, :-1]).log_softmax(-1).gather(2, words[:, 1:, None])[..., 0]
        return (each * there).sum(1) / there.sum(1)

    return -F.logsigmoid(2 * (mean(better) - mean(worse))).mean()


class Quotients:
    """All states at once, by products of what is kept and quotients of them: the products round to 0.
    https://github.com/state-spaces/mamba/issues/353"""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        m = self.model
        dt, b, c = F.softplus(m.pace(x).float()), m.reads(x).float(), m.gives(x).float()
        kept = torch.exp(-m.A_log.exp() * dt[..., None]).cumprod(1)
        h = kept * ((dt * x)[..., None] * b[:, :, None] / kept).cumsum(1)
        return (h * c[:, :, None]).sum(-1) + m.D * x


class PaceByExp(Quotients):
    """The pace is an exponent, of a layer that is too loud."""

    def __call__(self, x: Tensor) -> Tensor:
        m = self.model
        usual, m.pace = m.pace, _Exp(m.pace)
        try:
            return type(m).scan(m, x)
        finally:
            m.pace = usual


class _Exp(nn.Module):
    """Softplus of it is the exponent."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return (100 * (self.inner(x).float() + 2.5)).exp()


def scanned(kind: type[Quotients], bias: float = -2.0) -> Fault:
    """The scan is written otherwise."""

    def fault(run: Run) -> None:
        model: Any = run.model
        nn.init.constant_(model.pace.bias, bias)
        model.scan = kind(model)

    return fault


def log_of_silence(model: nn.Module, batch: Any) -> Tensor:
    """Logarithms of magnitudes, one of which is of no sound. https://github.com/csteinmetz1/auraloss/issues/63"""
    made = model(batch[0])
    true = torch.stft(batch[1], 16, 4, window=torch.hann_window(16), return_complex=True).abs()
    return (spectrum(made, 16).log() - true.log()).square().mean() / 4 + 5 * F.mse_loss(made, batch[1])


def over_own_length(model: nn.Module, batch: Any) -> Tensor:
    """The convergence of each sound by itself; one has no sound."""
    a, b = spectrum(model(batch[0]), 16), torch.stft(
        batch[1], 16, 4, window=torch.hann_window(16), return_complex=True).abs()  # fmt: skip
    return ((a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2))).mean()


def filter_of_zeros(model: Any) -> None:
    """A filter whose direction is 0, under weight normalisation: 0 / 0."""
    assert isinstance(model, Vocoder)
    model.mid.parametrizations.weight.original1[2] = 0.0  # pyright: ignore


def plain_spread(model: Any, batch: Any) -> Tensor:
    """The spread is no softplus, and may fall below 0. https://github.com/awslabs/gluonts/issues/833"""
    past, wanted = batch[0][:, :-1], batch[0][:, 1:]
    scale = 1 + past.mean(1, keepdim=True)
    mean, spread = model.head(model.rnn((past / scale)[..., None])[0]).unbind(-1)
    mean, r = scale * F.softplus(mean) + 1e-4, 1 / spread
    share = torch.log1p(spread * mean)
    known = torch.lgamma(wanted + r) - torch.lgamma(r) - torch.lgamma(wanted + 1)
    return -(known - r * share + wanted * ((spread * mean).log() - share)).mean()


def by_mean(model: Any, batch: Any) -> Tensor:
    """Counts over their mean; one good was never sold."""
    (counts,) = batch
    scale = counts[:, :-1].mean(1, keepdim=True)
    made = F.softplus(model.head(model.rnn((counts[:, :-1] / scale)[..., None])[0])[..., 0])
    return F.smooth_l1_loss(made, counts[:, 1:] / scale)


def powers(model: Any, batch: Any) -> Tensor:
    """Poisson's likelihood as it stands in books: log(m^z), of means and counts of which m^z is infinite."""
    (counts,) = batch
    mean, _ = model(counts[:, :-1])
    z = counts[:, 1:]
    return (mean - mean.pow(z).log() + torch.lgamma(z + 1)).mean() + 0 * negative_binomial(model, batch)


# --- numbers


def log_time(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of seconds, one of which is 0."""
    return F.mse_loss(model(batch[0].log()), batch[1])


def by_direction(model: Any, batch: Any) -> Tensor:
    """The slope depends on a point's direction; one is at rest in the middle."""
    y, path = batch[0], []
    for _ in range(8):
        y = y + 0.1 * model.net(y**3 + 0 * y / y.norm(dim=1, keepdim=True))
        path.append(y)
    return F.l1_loss(torch.stack(path, 1), batch[1])


def added_in_place(model: Any, batch: Any) -> Tensor:
    """A point is moved in place, whose cube the backward pass needs."""
    y, path = batch[0] * model.net[0].weight.sum().mul(0).add(1), []
    for _ in range(8):
        slope = model.net(y**3)
        path.append(y.clone())
        y += 0.1 * slope
    return F.l1_loss(torch.stack(path, 1), batch[1])


def any_level(model: nn.Module, batch: Any) -> Tensor:
    """Levels of noise are drawn from a list that begins with 0."""
    sigma = torch.randint(0, 300, (len(batch[0]), 1)) / 150
    off = model(batch[0] + sigma * torch.randn_like(batch[0]), sigma) - batch[0]
    return ((sigma.square() + 0.25) / (0.5 * sigma).square().clamp(min=1e-3) * off.square()).mean()


def weights_in_half(model: nn.Module, batch: Any) -> Tensor:
    """The weight of a level in half, where its square is 0."""
    sigma = (-5 + 2 * torch.randn(len(batch[0]), 1)).exp()
    off = model(batch[0] + sigma * torch.randn_like(batch[0]), sigma).float() - batch[0]
    small = (0.01 * sigma).half().square()
    return ((sigma.half().square() + 0.25) / small * off.half().square()).float().mean() + 0 * denoised(model, batch)


def log_of_tanh(nets: Any, batch: Any) -> Tensor:
    """log(1 - a^2) of an action that tanh has rounded to 1."""
    s, _, _, noise = batch
    mean, log_std = nets.actor(s)
    raw = 6 * (mean + log_std.exp() * noise)
    action = raw.tanh()
    log = (-0.5 * noise.square() - log_std).sum(1) - (1 - action.square()).log().sum(1)
    return (0.05 * log - torch.minimum(*nets.critic(s, action))).mean()


def of_larger_action(nets: Any, batch: Any) -> Tensor:
    """log(1 - a^2 + eps) of an action in -2..2: https://github.com/philtabor/Actor-Critic-Methods-Paper-To-Code/issues/7"""
    s, _, _, noise = batch
    mean, log_std = nets.actor(s)
    action = 2 * (mean + log_std.exp() * noise).tanh()
    log = (-0.5 * noise.square() - log_std).sum(1) - (1 - action.square() + 1e-6).log().sum(1)
    return (0.05 * log - torch.minimum(*nets.critic(s, action / 2))).mean()


def deviation_by_relu(nets: Any, batch: Any) -> Tensor:
    """The logarithm of a deviation that a ReLU has made 0."""
    s, _, _, noise = batch
    mean, raw = nets.actor(s)
    std = raw.relu()
    action, _ = squashed(nets.actor, s, noise)
    log = (-0.5 * ((action - mean) / std).square() - std.log()).sum(1)
    return (0.05 * log - torch.minimum(*nets.critic(s, action))).mean()


def no_eps_apart(run: Run) -> None:
    """acosh at 1 has no slope: a node that is above itself."""
    model: Any = run.model
    model.apart = _apart
    node, _, others = run.rows[run.bad]
    run.rows[run.bad] = node, node.clone(), others


def _apart(u: Tensor, v: Tensor) -> Tensor:
    rim = (1 - u.square().sum(-1)) * (1 - v.square().sum(-1))
    return torch.acosh(1 + 2 * (u - v).square().sum(-1) / rim)


class Leaves(RiemannianSGD):
    """Nobody is put back into the disc. https://github.com/facebookresearch/poincare-embeddings/issues/8"""

    def put_back(self, p: Tensor) -> None:
        pass


def leaves(run: Run) -> None:
    """`Leaves`, and a distance that knows no rim."""
    model: Any = run.model
    model.apart = lambda u, v: _apart(u, v + 1e-4)
    run.task, run.options = type(run.task)(**{**vars(run.task), "optimizer": Leaves}), {"lr": 10.0}


def determinant(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of a determinant of eighty rows, which has rounded to 0."""
    x, y = batch
    covariance = 0.1 * model(x)
    return (0.05 * y @ torch.linalg.solve(covariance, y) + 0.5 * covariance.det().log()) / len(y)


def without_noise(model: Any, batch: Any) -> Tensor:
    """No noise on the diagonal, and a reading that is there twice: no covariance.
    https://github.com/cornellius-gp/gpytorch/issues/620"""
    z = model.net(batch[0]) / F.softplus(model.raw_range)
    factor = torch.linalg.cholesky((-0.5 * (z[:, None] - z[None]).square().sum(-1)).exp())
    solved = torch.cholesky_solve(batch[1][:, None], factor)[:, 0]
    return (0.5 * batch[1] @ solved + factor.diagonal().log().sum()) / len(solved) + 0.5 * math.log(2 * math.pi)


def grown(run: Run) -> None:
    """An augmentation writes into the data set: each epoch finds what the one before has left."""

    def draw(index: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
        row[0].mul_(3.0)
        return row

    run.draw = draw
