"""torchvision's loops, batched, same numbers; torchvision's own file names."""
