"""Other tools' annotations → COCO."""
