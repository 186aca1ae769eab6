"""Real runs of two gloo processes that are not alike, or are asked to end: ``unlike_teams.py FOLDER CASE…``; JSON.

For each case the exit codes of both processes and what they said. The processes are forked from this one, which has
imported everything, and find each other as torchrun's do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "bench")]

import imported  # noqa: E402, F401
from runs import config, tiny_model  # noqa: E402

from maskrcnn_coco import train  # noqa: E402
from maskrcnn_coco.data.builtin_shapes import write_shapes  # noqa: E402
from maskrcnn_coco.data.dataset import CocoDataset  # noqa: E402
from maskrcnn_coco.distributed.ranks import Ranks  # noqa: E402
from maskrcnn_coco.errors import MaskRCNNError  # noqa: E402
from maskrcnn_coco.records import StepRecord  # noqa: E402
from maskrcnn_coco.system.endings import code_of  # noqa: E402
from maskrcnn_coco.training import agreement, loop, response  # noqa: E402

PATIENCE = 60.0
INTERVAL = 4
"""Steps between two comparisons of weights here."""
SETTINGS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 1e-3},
    "seed": {"seed": 7},
    "batch": {"batch_size": 4},
    "guard": {"guard": "observe"},
}


def changed_data(data: Path, target: Path, case: str) -> Path:
    """The data set as process 1 has it: another box, other names of classes, or an image less."""
    shutil.copytree(data, target)
    for path in target.glob("*/_annotations.coco.json"):
        found = json.loads(path.read_text())
        if case == "box":
            found["annotations"][0]["bbox"][0] += 1
        if case == "classes":
            found["categories"] = [{**c, "name": c["name"] + "s"} for c in found["categories"]]
        if case == "images":
            gone = found["images"].pop()["id"]
            found["annotations"] = [a for a in found["annotations"] if a["image_id"] != gone]
        path.write_text(json.dumps(found))
    return target


def one_weight(model: torch.nn.Module, record: Any) -> None:
    """After step 1 one finite value of process 1 is the next larger one."""
    if isinstance(record, StepRecord) and record.step == 1 and os.environ["RANK"] == "1":
        with torch.no_grad():
            value = next(model.parameters()).view(-1)[0]
            value.copy_(torch.nextafter(value, value + 1))


def spoil() -> None:
    """A box of one image is NaN: one process alone meets it, and looks for the cause."""
    sampled = CocoDataset.sample

    def sample(source: CocoDataset, epoch: int, index: int, repeat: int = 0) -> Any:
        image, target = sampled(source, epoch, index, repeat)
        if source.train and int(target["image_id"]) == 5:
            target["boxes"][0, 0] = float("nan")
        return image, target

    setattr(CocoDataset, "sample", sample)  # noqa: B010 (to a type checker it is another function)


def interrupted_while_it_looks(folder: Path) -> None:
    """Ctrl-C for the whole team the moment that one of it begins to look for a cause."""
    look = response.investigate

    def investigate(*args: Any, **rest: Any) -> Any:
        if not (folder / "looked").exists():
            (folder / "looked").touch()
            for path in folder.glob("pid_*"):
                os.kill(int(path.read_text()), signal.SIGINT)
        return look(*args, **rest)

    response.investigate = investigate


def twice(record: Any) -> None:
    """SIGTERM after step 1, and once more before that step's answer."""
    if isinstance(record, StepRecord) and record.step == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def run(case: str, folder: Path, data: Path) -> int:
    """One process of the team."""
    rank = os.environ["RANK"]
    (folder / f"pid_{rank}").write_text(str(os.getpid()))
    changes: dict[str, Any] = {"batch_size": 2, "epochs": 1, "checkpoint_every": "1", "resume": "auto"}
    observers: list[Any] = []
    model = tiny_model()
    Ranks.start = partial(Ranks.start, timeout=20.0)
    agreement.EVERY = loop.EVERY = INTERVAL
    if rank == "1" and case in SETTINGS:
        changes |= SETTINGS[case]
    if rank == "1" and case in ("box", "classes", "images", "same data elsewhere"):
        data = changed_data(data, folder / "other", case)
    if case == "weight":
        observers.append(partial(one_weight, model))
    if case == "weight at the start" and rank == "1":
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-6
    if case == "Ctrl-C":
        spoil()
        interrupted_while_it_looks(folder)
    if case == "SIGTERM twice":
        observers.append(twice)
    return train(config(data, folder / "out", **changes), model=model, observers=observers).exit_code


def fork(case: str, folder: Path, data: Path, names: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ.update(names)
        log = os.open(folder / f"log_{names['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run(case, folder, data)
    except MaskRCNNError as e:
        print(f"error: {e.render()}", file=sys.stderr, flush=True)
        code = e.exit_code
    except KeyboardInterrupt as e:
        code = code_of(e)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def team(case: str, folder: Path, data: Path) -> dict[str, Any]:
    """Both processes, to their ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    began = time.monotonic()
    pids = [fork(case, folder, data, {**common, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    codes = {}
    while len(codes) < 2:
        for rank, pid in enumerate(pids):
            if rank in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - began > PATIENCE:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    said = [(folder / f"log_{r}").read_text(errors="replace") for r in range(2)]
    saved = sorted(p.name for p in (folder / "out" / "checkpoints").glob("*.pth"))
    return {"codes": [codes[0], codes[1]], "said": said, "saved": saved, "seconds": time.monotonic() - began}


def main() -> int:
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    data = folder / "data"
    write_shapes(data, train=12, val=2, size=64)
    found = {}
    for case in cases:
        name, _, again = case.partition(", again")
        del again
        found[case] = team("" if ", again" in case else name, folder / name, data)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
