"""The verbs of the command line; `entry` and `main` for the installed command and for `main_mlops`."""

from maskrcnn_coco.cli.command_line import entry as entry
from maskrcnn_coco.cli.command_line import main as main
