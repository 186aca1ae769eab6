"""Recipes by data-set size, the learning-rate guideline, and: a flag given is never overridden."""

import pytest

from maskrcnn_coco.config.recipes import component_lrs, of_older_run, resolve
from maskrcnn_coco.config.settings import Config


@pytest.mark.parametrize(
    ("images", "lr", "multiplier", "epochs"),
    [(499, 1e-3, 5.0, 30), (500, 5e-3, 5.0, 20), (2000, 5e-3, 5.0, 20), (2001, 5e-3, 7.0, 15)],
)
def test_the_table(images, lr, multiplier, epochs):
    c = resolve(Config(data="x"), num_images=images).config
    assert (c.lr, c.head_lr_multiplier, c.epochs) == (lr, multiplier, epochs)


def test_everything_is_settled_and_has_a_reason():
    resolved = resolve(Config(data="x"), num_images=300)
    for name in ("lr", "epochs", "batch_size", "model", "weights", "min_size", "max_size", "workers", "warmup_steps"):
        assert getattr(resolved.config, name) is not None
        assert resolved.reasons[name]
    assert resolved.config.model == "maskrcnn_resnet50_fpn_v2"
    assert resolved.config.weights == "coco"


def test_what_was_given_stays():
    given = {"lr": 2e-3, "head_lr_multiplier": 3.0, "epochs": 7, "batch_size": 3, "warmup_steps": 0, "workers": 0}
    for builtin in (False, True):
        resolved = resolve(Config(**given), num_images=5000, builtin=builtin)
        for name, value in given.items():
            assert getattr(resolved.config, name) == value
            assert resolved.reasons[name] == "given"


def test_component_learning_rates():
    c = resolve(Config(lr=5e-3, head_lr_multiplier=10.0, rpn_lr_multiplier=2.0), num_images=10).config
    assert component_lrs(c) == pytest.approx({"backbone": 5e-3, "rpn": 1e-2, "box_head": 5e-2, "mask_head": 5e-2})


def test_no_warning_inside_the_safe_range():
    assert resolve(Config(data="x", lr=1e-3), num_images=100).warnings == []


def test_a_warning_names_component_value_range_and_flag():
    warnings = resolve(Config(data="x", lr=5e-3, head_lr_multiplier=5.0), num_images=100).warnings
    text = " ".join(warnings)
    assert "box_head: learning rate 0.025 is in the aggressive range 0.01 to 0.05" in text
    assert "--head-lr-multiplier" in text
    assert "backbone" not in text


def test_past_the_aggressive_range_is_said_so():
    warnings = resolve(Config(data="x", lr=2e-2, head_lr_multiplier=5.0), num_images=100).warnings
    assert any(w.startswith("backbone") and "past the aggressive range" in w for w in warnings)
    assert any(w.startswith("mask_head") and "past the aggressive range" in w for w in warnings)


def test_adamw_has_rates_and_ranges_of_its_own():
    resolved = resolve(Config(data="x", optimizer="adamw"), num_images=1000)
    assert (resolved.config.lr, resolved.config.weight_decay) == (pytest.approx(2.5e-4), 0.05)
    assert "adamw" in resolved.reasons["lr"]
    sgd = resolve(Config(data="x"), num_images=1000)
    assert [w.split(":")[0] for w in resolved.warnings] == [w.split(":")[0] for w in sgd.warnings]
    hot = resolve(Config(data="x", optimizer="adamw", lr=5e-3), num_images=1000).warnings
    assert any(w.startswith("backbone") and "past the aggressive range" in w for w in hot)


def test_clipping_off_is_warned_about():
    assert any("--max-grad-norm 0" in w for w in resolve(Config(data="x", max_grad_norm=0), num_images=9).warnings)


def test_linear_scaling_is_offered_and_said_never_silent():
    offered = resolve(Config(data="x", lr=1e-3), num_images=100, world=4)
    assert offered.config.lr == 1e-3
    assert any("--lr-scaling linear" in w for w in offered.warnings)
    scaled = resolve(Config(data="x", lr=1e-3, lr_scaling="linear"), num_images=100, world=4)
    assert scaled.config.lr == pytest.approx(4e-3)
    assert "4 processes" in scaled.reasons["lr"]


def test_a_backbone_file_means_no_download():
    assert resolve(Config(data="x", backbone_weights="b.pth"), num_images=9).config.weights == "none"


@pytest.mark.parametrize(("device", "proposals"), [("cpu", 128), ("cuda", 512)])
def test_on_a_cpu_the_heads_train_on_fewer_proposals_and_that_is_said(device, proposals):
    resolved = resolve(Config(data="x"), num_images=100, device=device)
    assert resolved.config.box_batch_size_per_image == proposals
    assert "512" in resolved.reasons["box_batch_size_per_image"] or device == "cuda"
    given = resolve(Config(data="x", box_batch_size_per_image=256), num_images=100, device=device)
    assert given.config.box_batch_size_per_image == 256


def test_our_own_recipe_is_not_warned_of_and_what_was_given_is():
    for images, builtin in ((150, True), (150, False), (900, False), (9000, False)):
        assert resolve(Config(), num_images=images, builtin=builtin).warnings == []
    assert "mask_head" in " ".join(resolve(Config(head_lr_multiplier=9.0), num_images=900).warnings)
    assert "backbone" in " ".join(resolve(Config(lr=0.05), num_images=900).warnings)


@pytest.mark.parametrize(
    ("given", "images", "times"),
    [
        ({"weights": "imagenet"}, 10, 5.0),
        ({"weights": "none", "backbone_weights": "b.pth"}, 10, 5.0),
        ({"weights": "imagenet", "lr": 2e-3}, 10, 2.5),
        ({"weights": "imagenet", "optimizer": "adamw"}, 10, 5.0),
        ({"weights": "imagenet"}, 900, 1.0),
        ({"weights": "imagenet", "lr": 0.02}, 10, 1.0),
        ({"weights": "imagenet", "lr": "auto"}, 10, 1.0),
        ({"weights": "imagenet", "rpn_lr_multiplier": 2.0}, 10, 2.0),
        ({"weights": "imagenet", "lr": 3e-4}, 10, 16.66),
        ({"weights": "none"}, 10, 1.0),
        ({}, 10, 1.0),
    ],
)
def test_proposals_that_start_from_nothing_beside_a_trained_backbone_learn_at_their_highest_safe_rate(
    given, images, times
):
    resolved = resolve(Config(data="x", **given), num_images=images)
    assert resolved.config.rpn_lr_multiplier == times
    assert ("random weights" in resolved.reasons.get("rpn_lr_multiplier", "")) is (times > 2.0)
    assert not any(w.startswith("rpn") for w in resolved.warnings if given.get("lr") != 0.02)


FRESH = "it starts from random weights: 0.005 is the highest rate that is safe for it"


@pytest.mark.parametrize(
    ("given", "builtin", "times", "reason"),
    [
        ({}, False, 1.0, "default: as the backbone"),
        ({"weights": "coco"}, False, 1.0, "default: as the backbone"),
        ({"weights": "none"}, False, 1.0, "default: as the backbone"),
        ({"weights": "run/best.pth"}, False, 1.0, "default: as the backbone"),
        ({"weights": "imagenet"}, False, 5.0, FRESH),
        ({"model": "maskrcnn_swin_t_fpn"}, False, 5.0, FRESH),
        ({"backbone_weights": "b.pth"}, False, 5.0, FRESH),
        ({"weights": "imagenet", "lr": 2e-3}, False, 2.5, FRESH),
        ({"weights": "imagenet", "lr": "auto"}, False, 1.0, "default: as the backbone"),
        ({"weights": "imagenet", "rpn_lr_multiplier": 1.0}, False, 5.0, FRESH),
        ({"weights": "imagenet", "fpn_lr_multiplier": 1.0}, False, 1.0, "given"),
        ({"fpn_lr_multiplier": 3.0}, False, 3.0, "given"),
        ({}, True, 1.0, "default: as the backbone"),
        ({"backbone_weights": "b.pth"}, True, 1.0, "default: as the backbone"),
    ],
)
def test_an_fpn_that_starts_from_nothing_learns_as_fast_as_such_proposals(given, builtin, times, reason):
    resolved = resolve(Config(**({} if builtin else {"data": "x"}), **given), num_images=10, builtin=builtin)
    assert (resolved.config.fpn_lr_multiplier, resolved.reasons["fpn_lr_multiplier"]) == (times, reason)
    assert not any(w.startswith(("fpn", "rpn")) for w in resolved.warnings)


@pytest.mark.parametrize("lr", [1e-5, 3e-4, 7e-4, 1.5e-3, 4.9e-3, 5e-3, 6e-3])
def test_the_default_rate_of_what_starts_from_nothing_is_never_above_the_safe_ones(lr):
    c = resolve(Config(data="x", weights="imagenet", lr=lr), num_images=10).config
    assert c.fpn_lr_multiplier == c.rpn_lr_multiplier
    assert lr * c.fpn_lr_multiplier <= max(lr, 5e-3 * (1 + 1e-9))
    assert lr * c.fpn_lr_multiplier >= 0.99 * 5e-3


def test_a_rate_of_the_fpn_s_own_that_is_too_high_is_warned_of():
    warned = resolve(Config(data="x", weights="imagenet", fpn_lr_multiplier=50.0), num_images=10).warnings
    assert [w for w in warned if w.startswith("fpn")] == [
        "fpn: learning rate 0.05 is past the aggressive range 0.005 to 0.02 "
        "(safe for random weights: 0.0005 to 0.005; --fpn-lr-multiplier)"
    ]
    assert of_older_run(Config()).fpn_lr_multiplier == 1.0 and of_older_run(Config(fpn_lr_multiplier=3.0)) == Config(
        fpn_lr_multiplier=3.0
    )
