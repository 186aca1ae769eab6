"""Settings: all errors at once, each with flag and fix; YAML there and back."""

import pytest

from maskrcnn_coco.config.settings import Config, dump_config, load_config, validate
from maskrcnn_coco.errors import ConfigError


def test_every_bad_setting_is_named_in_one_error():
    bad = Config(lr=-1.0, momentum=1.2, epochs=0, model="maskrcnn_resnet50", max_grad_norm=float("nan"))
    with pytest.raises(ConfigError) as e:
        validate(bad)
    text = str(e.value)
    for word in ("--lr", "--momentum", "--epochs", "--model", "did you mean", "--max-grad-norm"):
        assert word in text
    assert e.value.exit_code == 2


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("nan"), float("inf")])
def test_a_learning_rate_must_be_finite_and_positive(lr):
    with pytest.raises(ConfigError, match="--lr"):
        validate(Config(lr=lr))


def test_defaults_and_auto_are_fine():
    validate(Config())
    validate(Config(lr="auto", checkpoint_every="60s"))


def test_demo_and_data_exclude_each_other():
    with pytest.raises(ConfigError, match="--demo"):
        validate(Config(data="x", demo=True))


@pytest.mark.parametrize("text", ["0", "-5", "1m", "s", "60 s", 1000])
def test_checkpoint_every_takes_steps_or_seconds(text):
    with pytest.raises(ConfigError, match="--checkpoint-every"):
        validate(Config(checkpoint_every=text))


def test_yaml_there_and_back(tmp_path):
    config = Config(lr=5e-3, head_lr_multiplier=7.0, checkpoint_every="60", data="my data", resume="auto")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_yaml_exponents_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("lr: 5e-3\n")
    assert load_config(path).lr == 5e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [("lrr: 1", "did you mean lr"), ("epochs: many", "epochs"), ("- a", "holds no settings"), ("a: [", "not YAML")],
)
def test_a_bad_settings_file_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("given", [None, {"lr": 1e-3}, "config.yaml", Config])
def test_settings_that_are_no_config_are_told_so(given):
    with pytest.raises(ConfigError, match="no Config") as error:
        validate(given)
    assert "Config(" in str(error.value.fix)
