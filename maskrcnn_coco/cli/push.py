"""``push``: a checkpoint as a folder in the layout of the Hugging Face hub, and its upload through huggingface_hub.

    model.safetensors   the weights that predict, proved against the checkpoint
    config.json         architecture, classes with the data's ids, sizes of images
    README.md           MODEL_CARD.md with the header that the hub reads

`load` reads such a folder back, and `--weights` trains on from it. The upload is tried against a stand-in of the
package, never against the real hub.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskrcnn_coco import __version__
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.checkpoints import checkpoint_card
from maskrcnn_coco.inference.export import export
from maskrcnn_coco.inference.metadata import Card, plain_card
from maskrcnn_coco.model.build import load_for_inference
from maskrcnn_coco.model.weights import describe
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.report.model_card import CARD, model_card
from maskrcnn_coco.report.run_files import RunFiles
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.system.plain_files import read_regular

CONFIG, README = "config.json", "README.md"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_USE = 'found = load("best.pth").predict("photo.jpg")'
_LOGIN = "hf auth login, or HF_TOKEN with a token that may write there"


@dataclass(frozen=True)
class PushOptions:
    """The flags of ``push``; see ``--help``."""

    to_folder: Path | None = None
    license: str = ""
    card: Path | None = None
    private: bool = False
    message: str = "Upload model"
    json_mode: bool = False


def push_checkpoint(checkpoint: Path, repo: str, options: PushOptions) -> int:
    """``maskrcnn-coco push``; returns the exit code.

    Raises:
        ConfigError: no name of a repository, a package that is missing, a hub that refuses.
        CheckpointError, ExportError: the checkpoint cannot be used; then nothing was uploaded.
    """
    check_repo(repo)
    console = Console(json_mode=options.json_mode)
    if options.to_folder is not None:
        files = write_layout(checkpoint, options.to_folder, repo, license=options.license, card=options.card)
        where = str(options.to_folder)
    else:
        # Where it is missing, that is said before the time that the proof takes.
        import huggingface_hub  # pyright: ignore[reportMissingImports]

        with tempfile.TemporaryDirectory(prefix="push-") as name:
            files = write_layout(checkpoint, Path(name), repo, license=options.license, card=options.card)
            where = upload(huggingface_hub, Path(name), repo, options)
    if options.json_mode:
        said = {"repo": repo, "where": where, "files": [f.name for f in files], "uploaded": options.to_folder is None}
        sys.stdout.write(to_json(said) + "\n")
    else:
        console.note(f"{where}: {', '.join(f.name for f in files)}")
        console.note("the model card has lines to fill in: where the images come from, licence, intended use")
    return 0


def check_repo(repo: str) -> None:
    """Raise ConfigError where ``repo`` is no name that the hub takes."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError("that is no repository", got=repo, expected="OWNER/NAME", fix="push CHECKPOINT OWNER/NAME")


def write_layout(
    checkpoint: Path, folder: Path, repo: str, *, license: str = "", card: Path | None = None
) -> list[Path]:
    """Write the three files into ``folder`` and return them; what else lies there stays.

    Args:
        repo: for the lines of the card that say how the model is loaded.
        license: SPDX name, for the card.
        card: the card to take; None: MODEL_CARD.md beside the checkpoint, else one made of what the checkpoint says.

    Raises:
        ConfigError, CheckpointError, ExportError: as their names say.
    """
    beside = checkpoint.with_name(CARD)
    given = card if card is not None else beside if beside.is_file() else None
    text = None if given is None else read_regular(given, most=1 << 20).decode("utf-8", "replace")
    model, contents = load_for_inference(checkpoint, fast=False)
    about = checkpoint_card(model, contents)
    exported = export(checkpoint, folder, "safetensors")
    write_text(folder / CONFIG, json.dumps(describe_model(model, contents, about), indent=2, ensure_ascii=False) + "\n")
    if text is None:
        text = model_card(_known(contents, about))
    write_text(folder / README, hub_card(text, repo, license))
    return [*exported.files, folder / CONFIG, folder / README]


def describe_model(model: Any, contents: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """``config.json``: labels as torchvision counts them (1 is the first class), sizes in pixels."""
    found = describe(model.state_dict())
    names = dict(enumerate(card.classes, 1))
    return {
        "library_name": "maskrcnn-coco",
        "library_version": __version__,
        "architecture": None if found is None else found.model,
        "num_classes": len(names) + 1,
        "id2label": {str(n): name for n, name in names.items()},
        "label2id": {name: n for n, name in names.items()},
        "min_size": int(model.transform.min_size[-1]),
        "max_size": int(model.transform.max_size),
        "box_detections_per_image": int(model.roi_heads.detections_per_img),
        **{k: v for k, v in plain_card(card).items() if k != "classes"},
    }


def _known(contents: Mapping[str, Any], card: Card) -> RunFiles:
    """What a checkpoint alone says of its run."""
    config = contents.get("config")
    settings = dict(config) if isinstance(config, Mapping) else {}
    return RunFiles(Path(), config=settings, info={"data": {"classes": list(card.classes)}})


def hub_card(text: str, repo: str, license: str) -> str:
    """A model card as the hub's README.md: with its header, the licence, and how the model is loaded from there."""
    if not text.startswith("---\n"):
        head = ["---", "library_name: maskrcnn-coco", "pipeline_tag: image-segmentation", "license: other", "---", ""]
        text = "\n".join(head) + "\n" + text
    if license:
        text = re.sub(r"(?m)^license:.*$", lambda _: f"license: {license}", text, count=1)
        text = re.sub(r"(?m)^- of the weights:.*$", lambda _: f"- of the weights: {license}", text, count=1)
    use = f'folder = snapshot_download("{repo}")\nfound = load(folder).predict("photo.jpg")'
    return text.replace(
        "from maskrcnn_coco import load\n\n" + _USE,
        f"from huggingface_hub import snapshot_download\n\nfrom maskrcnn_coco import load\n\n{use}",
    )


def upload(hub: Any, folder: Path, repo: str, options: PushOptions) -> str:
    """Make the repository where it is not there, and send the folder in one commit; returns where it is.

    Args:
        hub: the package huggingface_hub.

    Raises:
        ConfigError: whatever the hub or the way to it refused.
    """
    try:
        api = hub.HfApi()
        made = api.create_repo(repo, repo_type="model", private=options.private, exist_ok=True)
        name = getattr(made, "repo_id", None) or repo  # a name without an owner becomes the user's own
        done = api.upload_folder(
            repo_id=name, folder_path=str(folder), repo_type="model", commit_message=options.message
        )
    except Exception as e:  # whatever the package raises: no token, no right, no net
        first = next((line for line in str(e).splitlines() if line.strip()), "")
        raise ConfigError(f"the hub did not take {repo}", got=f"{type(e).__name__}: {first}", fix=_LOGIN) from e
    return str(getattr(done, "commit_url", None) or done or name)
