"""COCO AP, predictions, pictures."""
