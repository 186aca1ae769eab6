"""``python -m maskrcnn_coco VERB``: the same as the command ``maskrcnn-coco``."""

from maskrcnn_coco.cli.command_line import entry

if __name__ == "__main__":
    entry()
