"""The training command: ``python maskrcnn_coco/main_mlops.py --lr 5e-3 --head-lr-multiplier 5.0``."""

import sys
from pathlib import Path

# Run as a plain script, this file's folder is first on sys.path and its modules would shadow others by bare name;
# the checkout's root in its place also makes the script work where the package is not installed.
_here = Path(__file__).resolve().parent
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _here]
if str(_here.parent) not in sys.path:
    sys.path.insert(0, str(_here.parent))

from maskrcnn_coco.cli.command_line import leave, main  # noqa: E402

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
