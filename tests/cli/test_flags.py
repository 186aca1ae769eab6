"""Flags as words: what is given, what is not, and one line for what does not fit."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from maskrcnn_coco.cli.arguments import ARGUMENTS, TrainArgs
from maskrcnn_coco.cli.command_line import parse
from maskrcnn_coco.cli.flags import ELSEWHERE, FROM_RECIPE, PATHS, metavar, read_flags
from maskrcnn_coco.cli.help_page import grouped, help_page
from maskrcnn_coco.cli.verbs import as_config
from maskrcnn_coco.config.settings import GROUPS, Config, given
from maskrcnn_coco.data.audit.catalogue import CATALOGUE
from maskrcnn_coco.errors import ConfigError


class Odd(msgspec.Struct, kw_only=True):
    track: tuple[Literal["mlflow", "wandb"], ...] = ()
    tile: int | Literal["auto"] | None = None
    names: list[str] = msgspec.field(default_factory=list)
    no_images: bool = False
    loud: bool = True


@pytest.mark.parametrize("name", sorted(Config.__struct_fields__))
def test_a_flag_given_with_its_default_is_given(name):
    field = next(f for f in msgspec.structs.fields(Config) if f.name == name)
    text = str(field.default)
    if field.default in (None, ()):  # nothing that can be written: any value will do
        words = (metavar(field.type) or "").split("|")
        text = {"NUMBER": "10.0", "N": "1", "TEXT": "1"}.get(words[0], words[0])
    flag = "--" + name.replace("_", "-")
    argv = [flag] if field.type is bool else [f"{flag}={text}"]
    args, _ = parse("train", argv)
    assert given(as_config_unchecked(args)) == {name}


def as_config_unchecked(args):
    return Config(**{n: getattr(args, n) for n in Config.__struct_fields__ if n in given(args)})


def test_nothing_given_is_nothing_given():
    args, _ = parse("train", ["--json"])
    assert given(as_config(args)) == frozenset()


def test_a_field_set_in_python_is_a_field_given():
    assert given(Config(max_grad_norm=10.0, checkpoint_dir="checkpoints")) == {"max_grad_norm", "checkpoint_dir"}
    assert given(Config(lr=None)) == frozenset()
    assert given(msgspec.structs.replace(Config(), epochs=3)) == {"epochs"}


def test_settings_of_a_file_are_given(tmp_path):
    (tmp_path / "c.yaml").write_text("max_grad_norm: 10.0\nepochs: null\n")
    args, _ = parse("train", ["--config", str(tmp_path / "c.yaml"), "--seed", "0"])
    assert given(as_config(args)) == {"max_grad_norm", "seed"}


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        (["--track", "mlflow", "--track=wandb"], {"track": ("mlflow", "wandb")}),
        (["--tile", "auto"], {"tile": "auto"}),
        (["--tile", "640"], {"tile": 640}),
        (["--names", "a", "--names", "b"], {"names": ["a", "b"]}),
        (["--no-images"], {"no_images": True}),
        (["--no-loud"], {"loud": False}),
        (["--loud=false"], {"loud": False}),
    ],
)
def test_values_of_every_shape(argv, want):
    assert read_flags(Odd, argv, words=False) == (want, [])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lr", "abc"], ["--lr", "'abc'", "a number or auto"]),
        (["--epochs", "3.5"], ["--epochs", "a whole number"]),
        (["--amp", "fp15"], ["did you mean fp16?"]),
        (["--learning-rate", "1"], ["--learning-rate", "did you mean --lr?"]),
        (["--imgsz", "640"], ["did you mean --min-size?"]),
        (["-lr", "1"], ["-lr", "did you mean --lr?"]),
        (["--eopchs", "3"], ["did you mean --epochs?"]),
        (["--lr"], ["--lr needs a value: NUMBER|auto"]),
        (["--lr", "--epochs", "3"], ["--lr needs a value"]),
        (["photo.jpg"], ["photo.jpg"]),
    ],
)
def test_what_does_not_fit_gets_one_line(argv, words):
    with pytest.raises(ConfigError) as caught:
        parse("train", argv)
    text = caught.value.render()
    assert "\n" not in text
    assert all(w in text for w in words), text


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError, match="2 flags cannot be used"):
        parse("train", ["--imgsz", "640", "--lr", "abc"])


@drawn(st.lists(st.text(alphabet="-=abcdelr_ .1/é\x00", max_size=8), max_size=6))
def test_no_words_raise_anything_but_our_error(argv):
    for verb in ARGUMENTS:
        try:
            parse(verb, argv)
        except ConfigError as e:
            assert e.exit_code == 2


def test_every_name_in_the_tables_is_a_flag():
    flags = {name for kind, _ in ARGUMENTS.values() for name in kind.__struct_fields__}
    assert set(ELSEWHERE) <= flags
    assert flags >= PATHS
    assert set(GROUPS) | FROM_RECIPE <= set(Config.__struct_fields__)
    others = [n for names in ELSEWHERE.values() for n in names.split()]
    assert not set(others) & set(Config.__struct_fields__), "a hint never speaks of a flag that exists"


def test_help_shows_every_flag_once_in_its_group():
    groups = grouped(TrainArgs)
    names = [f.name for fields in groups.values() for f in fields]
    assert sorted(names) == sorted(TrainArgs.__struct_fields__)
    assert list(groups) == [*GROUPS.values(), "This command"]
    assert next(f.name for f in groups["Optimizer"]) == "optimizer"
    assert next(t for t, fields in groups.items() if "resume" in [f.name for f in fields]) == "Files"


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("verb", sorted(ARGUMENTS))
def test_help_fits_the_terminal(verb, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    kind, positional = ARGUMENTS[verb]
    page = help_page(verb, kind, positional)
    copied = ("usage:", "  maskrcnn-coco", "  torchrun")  # commands stay whole
    lines = [line for line in page.splitlines() if not line.startswith(copied)]
    assert max(map(len, lines)) <= max(60, min(columns, 110))
    for name in kind.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in page


def test_metavars():
    assert metavar(float | Literal["auto"] | None) == "NUMBER|auto"
    assert metavar(bool) is None
    assert metavar(tuple[str, ...]) == "TEXT"


@pytest.mark.parametrize("word", ["maybe", "2", "", "False ", "null", "ja"])
def test_a_switch_with_a_word_that_is_neither_is_refused(word):
    """``--strict=false`` is no, ``--strict=fales`` must not be yes."""
    with pytest.raises(ConfigError, match=r"--strict: got .*expected true or false"):
        parse("train", [f"--strict={word}"])
    with pytest.raises(ConfigError, match="--no-strict"):
        parse("train", [f"--no-strict={word}"])


@pytest.mark.parametrize(("argv", "strict"), [("--strict=No", False), ("--no-strict=off", True), ("--strict=1", True)])
def test_a_switch_with_a_word_is_that_word(argv, strict):
    assert parse("train", [argv])[0].strict is strict


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["my_set/"], "did you mean --data my_set/?"),
        (["my set"], "did you mean --data 'my set'?"),
        (["\u2013epochs", "3"], "typographic dash: did you mean --epochs?"),
        (["--data", "a", "\u2014batch-size=4"], "typographic dash: did you mean --batch-size?"),
        (["--strict", "false"], "takes no value: did you mean --no-strict?"),
        (["--data", "a", "--strict", "True"], "takes no value: did you mean --strict?"),
        (["--data", "a", "b"], "a word without a flag: b (--help lists all)"),
    ],
)
def test_a_word_without_a_flag_is_told_with_what_was_meant(argv, hint):
    with pytest.raises(ConfigError, match="a word without a flag") as error:
        parse("train", argv)
    assert hint in str(error.value)


def test_a_choice_in_another_case_is_suggested():
    with pytest.raises(ConfigError, match="did you mean sgd"):
        parse("train", ["--optimizer", "SGD"])


def test_codes_of_check_are_explained_and_a_slip_is_answered():
    from maskrcnn_coco.cli.explanation import explanation

    for code, kind in CATALOGUE.items():
        text = explanation(code.lower())
        assert text.startswith(f"{code}: {kind.title}") and kind.fix in text
    assert "maskrcnn-coco explain GEOMETRY" in explanation("BOX_XYXY")
    assert explanation("LR_TOO_HIGH").startswith("LR_TOO_HIGH") and explanation("GEOMETRY").startswith("GEOMETRY")
    for slip, meant in (("LR_TO_HIGH", "LR_TOO_HIGH"), ("bbox_xyxy", "BOX_XYXY"), ("GEOMETRIE", "GEOMETRY")):
        with pytest.raises(ConfigError, match=f"did you mean {meant}"):
            explanation(slip)
    with pytest.raises(ConfigError, match="there is no cause"):
        explanation("nothing like it")
