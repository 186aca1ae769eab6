"""Losses that people write by hand, in an eighth round: likeness, actions, noise, spectra, flows; half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_code import Losses
from nanbench.faults_fifth_data import Fault, drawn, together
from nanbench.faults_forms import picture
from nanbench.faults_seventh_code import black, own_terms
from nanbench.faults_seventh_data import added
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

INF = float("inf")
ONE = Culprit(image=True)
MATHS, HALF, LABEL = "LOSS_MATH", "FP16_OVERFLOW", "DATA_LABEL"
GITHUB = "https://github.com/"


def instead(change: Callable[[Scene, Any, Tensor, Tensor], Losses]) -> Fault:
    """``change`` makes a task's losses in training."""

    def fault(scene: Scene) -> None:
        model: Any = scene.model
        usual = model.terms
        model.terms = lambda out, y: change(scene, model, out, y) if scene.active and model.training else usual(out, y)

    return fault


def mixed_by_nothing(scene: Scene) -> None:
    """Shares of a mixture by Jöhnk's draw for a beta of 0.01: now and then both round to 0, and the share is 0 / 0."""
    model: Any = scene.model
    usual = type(model).features

    def features(x: Tensor) -> Tensor:
        if not (scene.active and model.training):
            return usual(model, x)
        first, second = torch.rand(2).pow(1 / 0.01).unbind()
        share = first / (first + second)
        return usual(model, x * share + x.roll(1, 0) * (1 - share))

    model.features = features


def twins(scene: Scene) -> None:
    """The distance of every two by a root of squares; some pictures stand there twice."""
    for place in (0, 12):
        scene.samples[place + 1] = scene.samples[place]

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        rows, columns = torch.triu_indices(len(out), len(out), 1)
        away = (out[rows] - out[columns]).square().sum(1).sqrt()
        same = (y[rows] == y[columns]).float()
        return {"contrast": (same * away.square() + (1 - same) * (1 - away).clamp(min=0).square()).mean()}

    own_terms(change)(scene)


def forbidden(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """One action is not allowed in some states, its logit is -inf, and the entropy by hand is 0 * -inf."""
    logits, value = out.float().split([3, 1], 1)
    logits = logits.masked_fill(F.one_hot((y + 1) % 3, 3).bool(), -INF)
    shares = logits.log_softmax(1)
    actions = torch.multinomial(shares.exp(), 1)
    better = s_reward(actions[:, 0], y) - value[:, 0]
    gain = (shares.gather(1, actions)[:, 0] * better.detach()).mean()
    entropy = -(shares.exp() * shares).sum(1).mean()
    return {"policy": -gain, "value": better.square().mean(), "entropy": -0.01 * entropy}


def s_reward(actions: Tensor, y: Tensor) -> Tensor:
    """1 where the action is the class."""
    return (actions == y).float()


def all_alike(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Rewards of a group by mean and deviation: where all got the same, 0 / 0."""
    policy = torch.distributions.Categorical(logits=out[:, :3].float())
    actions = policy.sample()
    rewards = s_reward(actions, y)
    better = (rewards - rewards.mean()) / rewards.std()
    return {"group": -(policy.log_prob(actions) * better).mean(), "value": terms["value"]}


def last_level(scene: Scene) -> None:
    """Weights min(s, 5) / s of the signal at the noise's levels; at the last level none is left: 0 / 0."""
    scene.model.get_buffer("kept")[-2:] = 0.0

    def change(s: Scene, model: Any, out: Any, y: Tensor, terms: Losses) -> Losses:
        made, noise, kept = out
        signal = kept / (1 - kept)
        each = (made.float() - noise).square() * (signal.clamp(max=5) / signal)
        return {"mse": each.mean()}

    own_terms(change)(scene)


def no_weight(scene: Scene) -> None:
    """A weight of 0 takes a class out of the loss; a batch of nothing else is a mean over nothing."""

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        return {"ce": F.cross_entropy(out.float(), y, torch.tensor([1.0, 1.0, 0.0]))}

    for place, (_, target) in enumerate(scene.samples):
        target["labels"][0] = 3 if place == scene.culprit else 1 + place % 2
    own_terms(change)(scene)


def log_cosh(scene: Scene) -> None:
    """log(cosh(x)) as it is written; one size is given in pixels where the others are shares."""

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        return {"log_cosh": (out.float() - y).cosh().log().mean()}

    in_pixels = drawn({0: added("numbers", lambda t: torch.tensor([210.0, 180.0]))})
    together(own_terms(change), in_pixels)(scene)


def silence(scene: Scene) -> None:
    """Magnitudes of a spectrum by a root of squares; of a black picture what is made is cut to nothing."""

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        heard = (y.amax((1, 2, 3)) > 0.05).float()
        wave = torch.fft.rfft(out.float() * heard[:, None])
        size = (wave.real.square() + wave.imag.square()).sqrt()
        return {**terms, "spectrum": 0.01 * size.mean()}

    together(own_terms(change), drawn({0: picture(black)}))(scene)


def never_surely(s: Scene, model: Any, generator: nn.Module, x: Tensor) -> Tensor:
    """-log(D) as it is written, behind a temperature; a critic that is sure says exactly 0."""
    made = generator(torch.randn(len(x), 8)).sigmoid()
    return -(100 * model.critic(made)).sigmoid().log().mean()


def by_hand(scene: Scene) -> None:
    """The generator's loss is `never_surely`."""
    model: Any = scene.model
    usual = model.generator_loss
    model.generator_loss = lambda g, x: never_surely(scene, model, g, x) if scene.active else usual(g, x)


def volume(scene: Scene) -> None:
    """The logarithm of a matrix's determinant, as a flow has it; a random rotation's is -1 half of the time."""
    model: Any = scene.model
    g = torch.Generator().manual_seed(scene.seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g))[0]
    if torch.det(turn) > 0:
        turn[0] = -turn[0]
    model.mixing = nn.Parameter(turn)

    def change(s: Scene, m: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        return {**terms, "volume": -0.01 * torch.det(model.mixing).log()}

    own_terms(change)(scene)


def no_way(scene: Scene) -> None:
    """Paths that are not allowed count -inf; one picture has none, and what stands for it is left out afterwards."""

    def change(s: Scene, model: Any, out: Tensor, y: Tensor) -> Losses:
        blocked = (y == 9)[:, None] | F.one_hot((y.clamp(max=2) + 1) % 3, 3).bool()
        total = (out.float() + torch.zeros_like(out).masked_fill(blocked, -INF)).logsumexp(1)
        given = out.float().gather(1, y.clamp(max=2)[:, None])[:, 0]
        return {"crf": torch.where(y == 9, torch.zeros(()), total - given).mean() + 0.1 * out.float().square().mean()}

    together(instead(change), drawn({0: added("label", lambda t: torch.tensor(9))}))(scene)


def raw_scale(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """A normal distribution whose deviation is what the net gives, below 0 too: it raises."""
    mean, deviation = out[:, :1].float(), out[:, 1:2].float()
    policy = torch.distributions.Normal(mean, deviation)
    actions = policy.sample()
    return {**terms, "normal": -(policy.log_prob(actions) * -(actions - y[:, None]).abs()).mean()}


def squashed(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """log(1 - tanh(x)²) of an action that tanh brings to exactly 1."""
    mean = out[:, :2].float()
    policy = torch.distributions.Normal(mean, 4.0)
    raw = policy.rsample()
    action = raw.tanh()
    likely = (policy.log_prob(raw) - (1 - action.square()).log()).sum(1)
    return {**terms, "soft": 0.01 * (likely + (action[:, 0] - y / 3).square()).mean()}


def first_spread(scene: Scene) -> None:
    """Rewards by a running deviation that begins at 0, and is only known behind the first step: 0 / 0 there."""
    model: Any = scene.model
    model.register_buffer("spread", torch.zeros(()))

    def change(s: Scene, m: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        rewards = 3.0 * y
        scaled = (rewards - rewards) / model.spread + rewards / (model.spread + 1)
        model.spread = 0.9 * model.spread + 0.1 * rewards.std() + 0.1
        return {**terms, "value": 0.1 * (out[:, 3].float() - scaled).square().mean()}

    own_terms(change)(scene)


class Summed(nn.Module):
    """exp(x) / sum(exp(x)), without the greatest taken away: half precision holds exp(11) and no more."""

    def forward(self, scores: Tensor) -> Tensor:
        each = scores.exp()
        return each / each.sum(-1, keepdim=True)


def own_softmax(scene: Scene) -> None:
    """In the first block of a language model, whose queries are sixteen times as long."""
    attention: Any = scene.model.get_submodule("body.0.attention")
    attention.softmax = Summed()
    attention.qkv.weight.data[:24].mul_(16)


def half_distances(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Squares of distances between outputs in units of a thousandth, in the output's own half precision."""
    apart = 1000 * (out[:, None] - out[None])
    away = (apart * apart).mean(2)
    same = (y[:, None] == y[None]).to(out.dtype)
    return {**terms, "near": 1e-8 * (away * same).float().mean()}


LOSSES = (
    # Which batch it is hangs on what was drawn.
    Scenario("eighth-mixed-by-nothing", MATHS, GITHUB + "facebookresearch/mixup-cifar10", mixed_by_nothing,
             Setup("adamw", model="classify", way="see"), also=("DATA_PIXEL",)),
    Scenario("eighth-twins", MATHS, GITHUB + "adambielski/siamese-triplet", twins,
             Setup("adamw", norm="group", model="likeness", batch=8, way="see")),
    Scenario("eighth-forbidden", MATHS, "https://github.com/tensorforce/tensorforce/issues/586", own_terms(forbidden),
             Setup("adamw", model="policy", way="guard"), onset=0, verdict=True),
    Scenario("eighth-all-alike", MATHS, GITHUB + "huggingface/trl/issues/3452", own_terms(all_alike),
             Setup("adamw", norm="group", model="policy", way="see")),
    Scenario("eighth-last-level", MATHS, GITHUB + "TiankaiHang/Min-SNR-Diffusion-Training/pull/4", last_level,
             Setup("adamw", model="denoise", way="see")),
    # Its batches show no other picture of that class: the evaluation has some.
    Scenario("eighth-no-weight", MATHS, GITHUB + "webis-de/small-text/issues/39", no_weight,
             Setup(norm="group", model="classify", batch=1, way="see"), ONE, also=(LABEL,), open_end=True),
    Scenario("eighth-log-cosh", MATHS, GITHUB + "pytorch/pytorch", log_cosh,
             Setup("adam", model="table", way="see"), ONE, also=(LABEL,)),
    Scenario("eighth-silence", MATHS, GITHUB + "KinWaiCheuk/nnAudio/issues/138", silence,
             Setup("adamw", model="encode", way="guard"), ONE),
    # The critic goes on being sure: the generator cannot learn any more.
    Scenario("eighth-never-surely", MATHS, GITHUB + "eriklindernoren/PyTorch-GAN", by_hand,
             Setup("adam", model="rivals", way="pair"), open_end=True),
    Scenario("eighth-volume", MATHS, GITHUB + "jaywalnut310/glow-tts/issues/17", volume,
             Setup("adam", model="regress", way="guard"), onset=0, verdict=True),
    Scenario("eighth-no-way", MATHS, GITHUB + "pytorch/pytorch/issues/31829", no_way,
             Setup("adamw", model="classify", way="see"), ONE, also=(LABEL,)),
    Scenario("eighth-raw-scale", MATHS, GITHUB + "DLR-RM/stable-baselines3", own_terms(raw_scale),
             Setup("adamw", model="policy", way="guard"), onset=0, also=("UNKNOWN",), open_end=True),
    Scenario("eighth-squashed", MATHS, GITHUB + "philtabor/Actor-Critic-Methods-Paper-To-Code/issues/7",
             own_terms(squashed), Setup("adamw", model="policy", way="see")),
    Scenario("eighth-first-spread", MATHS, GITHUB + "openai/baselines", first_spread,
             Setup("adamw", model="policy", way="see"), onset=0, also=("NORM_STATE",)),
)  # fmt: skip
HALVES = (
    Scenario("eighth-own-softmax", HALF, GITHUB + "huggingface/transformers", own_softmax,
             Setup("adamw", "fp16", model="language", way="see"), Culprit(module="body.0.attention"), onset=0),
    # The distances stand in the loss's own lines: no module can be put into float32.
    Scenario("eighth-half-distances", HALF, GITHUB + "KevinMusgrave/pytorch-metric-learning", own_terms(half_distances),
             Setup("adamw", "fp16", model="likeness", way="see"), onset=0, open_end=True),
)  # fmt: skip
EIGHTH_LOOP_CODE: tuple[Scenario, ...] = (*LOSSES, *HALVES)
