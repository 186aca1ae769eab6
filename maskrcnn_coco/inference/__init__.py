"""From a checkpoint to use: predictions as objects and files, tiles, exported models and their proof."""
