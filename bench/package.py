"""The package as a stranger gets it: built, installed into a fresh environment, used outside the checkout.

    python bench/package.py [--offline]

Minutes, and gigabytes of torch. ``--offline`` takes the dependencies of the environment at hand, and installs the wheel
alone: what is tried is the package, not its dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def say(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """Run a command, show it, and return what it printed."""
    print("$", *command, flush=True)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"XDG_CACHE_HOME": str(cwd / "cache")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != code:
        sys.exit(f"exit {done.returncode}, expected {code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def install(folder: Path, wheel: Path, *, offline: bool) -> Path:
    """A fresh environment with the wheel; the folder of its programs."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    extra = []
    if offline:
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        Path(paths["purelib"], "lent.pth").write_text(sysconfig.get_paths()["purelib"])
        extra = ["--no-deps"]
    say(programs / "python", "-m", "pip", "install", "--quiet", *extra, wheel, cwd=folder)
    return programs


def main() -> None:
    """Build, install, check, train, predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true")
    offline = parser.parse_args().offline
    from hatchling.builders.wheel import WheelBuilder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(folder / "dist"), versions=["standard"])
        programs = install(folder / "env", Path(wheel), offline=offline)
        work = folder / "elsewhere"
        work.mkdir()
        command = programs / "maskrcnn-coco"
        where = say(programs / "python", "-c", "import maskrcnn_coco; print(maskrcnn_coco.__file__)", cwd=work).strip()
        assert Path(where).is_relative_to(folder), f"not the installed package: {where}"
        print(say(command, "--version", cwd=work).strip())
        result = json.loads(say(command, "train", "--demo", "--max-steps", "5", "--json", cwd=work))
        assert (result["status"], result["steps"], result["finite"]) == ("finished", 5, True), result
        (shapes,) = (work / "cache").rglob("shapes/train")
        report = json.loads(say(command, "check", "--data", shapes.parent, "--json", cwd=work))
        assert report, "check said nothing"
        picture = next(p for p in sorted(shapes.rglob("*")) if p.suffix in (".png", ".jpg"))
        say(command, "predict", "checkpoints/last.pth", picture, cwd=work)
        assert (work / "predictions" / "results.json").is_file(), list((work / "predictions").iterdir())
        say(programs / "python", "-m", "maskrcnn_coco", "explain", "LR_TOO_HIGH", cwd=work)
        print(f"{Path(wheel).name}: {Path(wheel).stat().st_size >> 10} KiB; check, 5 steps, predict, explain: all well")


if __name__ == "__main__":
    main()
