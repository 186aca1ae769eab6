"""Annotations are named as their file names them."""

from __future__ import annotations

from maskrcnn_coco.wording import annotation_words


def test_ids_that_stand_for_places_are_said_as_places():
    assert annotation_words([7, 203]) == "annotation 7, 203"
    assert annotation_words([-1, -13]) == "annotations[0], annotations[12]"
    assert annotation_words([4, -3]) == "annotation 4, annotations[2]"
    assert annotation_words(range(7)) == "annotation 0, 1, 2, 3, 4 and 2 more"
    assert annotation_words([]) == ""
