"""What was measured about a run's data, model and progress: all that a rule of this wing may look at. No torch.

Each part is None until somebody measured it, so that a rule speaks at the moment when its part is known, and only then.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Way = Literal["command", "own", "loop"]
"""How the caller came in: a flag mends a command, a line of code a data set of one's own, or a loop of one's own."""


@dataclass
class Stage:
    """How many objects are left after one stage on the way from the annotation to the losses."""

    name: str
    count: int
    image_ids: list[int] = field(default_factory=list)
    """Some of the images that lost objects here."""
    fix: str = ""
    """What to do about most of what was lost here, where that is known."""


@dataclass
class Targets:
    """Objects at each stage, the first being what was annotated. ``whole``: counted over the whole set."""

    images: int
    stages: list[Stage]
    whole: bool = True
    of: str = "training data"
    form: str = ""
    """What keeps samples from being read at all, most of the ``unread`` ones; ``form_fix``: the line that mends it."""
    form_fix: str = ""
    unread: int = 0
    unread_ids: list[int] = field(default_factory=list)


@dataclass
class Audited:
    """A finding of the audit of annotations about the whole set: its code there, and the code it has here."""

    code: str
    kind: str
    message: str
    fix: str
    of: str = "training data"


@dataclass
class Geometry:
    """Boxes against mask extents: how many objects agree as they are, and of the others how many under each reading.

    ``measured`` objects have both. ``amodal`` ones disagree only in that the box reaches beyond the mask: no fault.
    ``unclear``: mirrored or transposed they look the same, so that those readings say nothing about them.
    """

    measured: int
    agree: int
    disagree: int
    amodal: int = 0
    readings: dict[str, int] = field(default_factory=dict)
    boxes: int = 0
    unit_boxes: int = 0
    """Boxes whose corners all lie in 0..1, of images far larger."""
    outside: int = 0
    """Boxes that leave their image by more than a pixel, or lie outside."""
    twice: int = 0
    """Objects whose box and label another one of their image has, to the last digit."""
    image_ids: list[int] = field(default_factory=list)
    of: str = "training data"


@dataclass
class Content:
    """Outlines against the edges of their pictures: mean rank of edge strength under them, 0.5 at random.

    ``own`` as they are, ``chance`` on other pictures, ``above``: standard errors from the second to the
    first.
    """

    images: int
    own: float
    chance: float
    above: float
    readings: dict[str, float] = field(default_factory=dict)
    """Readings under which they fit, where they do not as they are: name → mean rank."""
    parts: dict[str, int] = field(default_factory=dict)
    """Readings that fit a part of the pictures, which alone were flipped or turned: name → pictures."""
    elsewhere: int = 0
    """Pictures whose outlines lie on another one's edges; ``step``: how many places on, 0 where it differs."""
    step: int = 0
    image_ids: list[int] = field(default_factory=list)
    of: str = "training data"


@dataclass
class Labels:
    """Labels seen, and how many the model tells apart. ``head`` and ``num_classes`` count the background."""

    counts: dict[int, int]
    images: int
    bad_images: int = 0
    """Images with a label outside 1..num_classes-1."""
    num_classes: int | None = None
    head: int | None = None
    names: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """Category names that several categories have."""
    shift: int = 0
    """What has to be added to the annotations' category ids so that all are known; 0: none is wanted, or helps."""
    unknown: int = 0
    """Objects whose category id is not among the categories."""
    untaught: dict[str, int] = field(default_factory=dict)
    """Classes of the validation data that training has no object of → objects."""
    of: str = "training data"
    image_ids: list[int] = field(default_factory=list)


@dataclass
class Matching:
    """Classes at an evaluation: AP50 of boxes as named, with classes left aside, and after the best renaming."""

    ap: float
    agnostic: float
    renamed: float
    mapping: dict[str, str] = field(default_factory=dict)
    """Predicted class → the class of the truth that it finds; only where they differ."""
    objects: int = 0


@dataclass
class Pixels:
    """Values of decoded images as they reach the model, and what the model does with them (``mean`` and ``std``)."""

    images: int
    low: float
    high: float
    negative: int = 0
    """Images with values clearly below 0."""
    large: int = 0
    """Images with values clearly above 1."""
    faint: int = 0
    """Images that are not all 0 and have no value above 1/250: what two divisions by 255 leave."""
    constant: int = 0
    bright: int = 0
    """Images whose highest value is fifty times that of the others or more, where there are others."""
    distinct: int = 0
    """Different pictures among them."""
    normalises: bool = True
    """The model subtracts a mean and divides by a deviation of its own."""
    mean: float = 0.0
    """What the model subtracts, at most."""
    of: str = "training data"
    image_ids: list[int] = field(default_factory=list)


@dataclass
class Parameters:
    """Trainable parameters against the optimizer's groups, and modes and values that keep weights from learning."""

    trainable: int
    missing: list[str] = field(default_factory=list)
    """Names of trainable parameters that are in no group."""
    strangers: int = 0
    """Parameters of the optimizer that are not the model's."""
    owned: int = 0
    """Parameters of the optimizer that are the model's."""
    decay: float = 0.0
    """The share of its weights that weight decay alone takes from a group in each step, at the most."""
    decay_of: tuple[float, float] = (0.0, 0.0)
    """The rate and the weight decay of that group."""
    momentum: float = 0.0
    """The highest of any group; from 1 on nothing is forgotten."""
    unloaded: list[str] = field(default_factory=list)
    """Parameters that hold one value in all places, though the optimizer's state says that it has moved them."""
    old_rate: tuple[float, float] | None = None
    """The rate that the optimizer was built with, and the other one that came with a loaded state."""
    frozen_random: list[str] = field(default_factory=list)
    """Frozen layers, or layers whose group alone has rate 0, with exactly the spread that an initialiser gives."""
    kept_eval: list[str] = field(default_factory=list)
    """Norm layers that were handed over in eval mode, and stay so."""
    far_anchors: dict[str, float] = field(default_factory=dict)
    """Anchors that no box can match: where they are → their size in pixels; ``image_side``: of the largest image."""
    image_side: float = 0.0
    eval_mode: list[str] = field(default_factory=list)
    """Layers that behave otherwise in training, in a model whose every module is in eval mode at a training step."""


@dataclass
class Resumed:
    """What did not come back with the state of a guard that had taken ``steps`` steps."""

    steps: int
    weights: list[str] = field(default_factory=list)
    """Components whose weights are others."""
    no_state: bool = False
    """The optimizer had a state then, and has none now."""
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Components whose rate had fallen, and is near its highest again: → then and now."""


@dataclass
class Still:
    """Components without gradient, or whose weights did not change, in all of ``steps`` steps that had objects."""

    steps: int
    no_gradient: list[str] = field(default_factory=list)
    no_change: list[str] = field(default_factory=list)
    """Gradient and rate are there, and the weights are the same all the same."""
    zero_rate: list[str] = field(default_factory=list)
    zero_losses: list[str] = field(default_factory=list)
    """Losses that were exactly 0 in every step, though the batches had objects."""
    moved: float | None = None
    """The most that a component moved by in one step, as a share of its weights; None: not measured."""
    rate: float = 0.0
    """Of all components and steps the highest."""
    detection: bool = False
    """The losses are those of torchvision's detectors."""
    gradient: float = 0.0
    """Of all steps the largest norm; ``clipped``: in how many times the bound it was in each step, 0 unless always."""
    clipped: float = 0.0
    decay: float = 0.0
    """What weight decay alone moves weights by in a step, as a share of them, at the most."""

    def only_moved(self) -> Still:
        """What this says of how far steps go, and of nothing else."""
        return replace(self, no_gradient=[], no_change=[], zero_rate=[], zero_losses=[])


@dataclass
class Rates:
    """Learning rates over the steps so far: of each component that fell, the highest and the latest."""

    steps: int
    fell: dict[str, tuple[float, float]] = field(default_factory=dict)
    since: int = 0
    """The step from which on they are that low."""


@dataclass
class Lengths:
    """Steps of the whole run, and of its warm-up."""

    steps: int
    warmup: int
    rate: float
    """That the warm-up leads to; ``reached``: the highest of the run."""
    reached: float


@dataclass
class RateTrial:
    """The same steps on a private copy at the run's rates and at raised ones: median loss before and after."""

    steps: int
    before: float
    after: dict[str, float] = field(default_factory=dict)
    """Factor on all rates ("1", "10", …) → loss at the end; inf where it broke."""
    rates: dict[str, float] = field(default_factory=dict)
    reach: float = 0.0
    """Share of its weights' norm that the fastest component moves by in the whole run, at its own rates."""


@dataclass
class Draws:
    """A data set's random numbers: how many samples were drawn twice, and which way they repeated."""

    compared: int
    reseeds: int = 0
    """Samples that set a global generator to one and the same state, whatever its state before, and then drew."""
    fresh_copies: int = 0
    """Samples that come out otherwise when drawn again, and the same from a fresh copy, as each worker has one."""
    workers: int = 0
    index: int | None = None


@dataclass
class Cost:
    """One reason why the truth does not score 1, and how much it costs."""

    what: str
    cost: float


@dataclass
class Ceiling:
    """AP of the truth, handed in as predictions: as this run evaluates, and as COCO does, at 100 detections."""

    scores: dict[str, float]
    coco: dict[str, float]
    cap: int = 100
    most: int = 0
    """Most objects in one image."""
    over: int = 0
    """Images with more objects than the model may give."""
    detections: int | None = None
    threshold: float = 0.0
    """Detections of a lower score the model does not give."""
    costs: list[Cost] = field(default_factory=list)
    images: int = 0


@dataclass
class MaskReadings:
    """AP50 of boxes, of masks as predicted, and of the same masks read otherwise.

    ``fill``: the share of its box that a true mask covers, in the middle. ``ended``: the run is over, and had epochs
    enough for masks to come after their boxes.
    """

    boxes: float
    masks: float
    readings: dict[str, float] = field(default_factory=dict)
    objects: int = 0
    fill: float = 1.0
    ended: bool = False


@dataclass
class Memory:
    """AP50 on training images and on validation images."""

    train: float
    val: float
    images: int
    train_images: int
    objects: int = 0
    leaks: int = 0
    same: bool = False
    """Both are one and the same data set; nothing else was measured."""


@dataclass
class BatchTrial:
    """One batch trained again and again on a private copy, after epochs in which nothing was learned."""

    epochs: int
    first_epoch: float
    last_epoch: float
    ap: float
    steps: int
    before: float
    after: float
    factor: float = 1.0
    """On the run's rates, at which the batch was learned best."""


@dataclass
class Facts:
    """Everything measured so far; see the parts."""

    way: Way = "command"
    targets: list[Targets] = field(default_factory=list)
    geometry: list[Geometry] = field(default_factory=list)
    audited: list[Audited] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    labels: Labels | None = None
    matching: Matching | None = None
    pixels: Pixels | None = None
    parameters: Parameters | None = None
    resumed: Resumed | None = None
    still: Still | None = None
    rates: Rates | None = None
    lengths: Lengths | None = None
    rate_trial: RateTrial | None = None
    draws: Draws | None = None
    ceiling: Ceiling | None = None
    mask_readings: MaskReadings | None = None
    memory: Memory | None = None
    batch_trial: BatchTrial | None = None
