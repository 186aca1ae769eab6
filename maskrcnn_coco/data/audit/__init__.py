"""Check annotations and images: every problem as a finding with code, place, message and fix."""

from __future__ import annotations

from maskrcnn_coco.data.audit.cache import audit_cached, audit_parts, fingerprint
from maskrcnn_coco.data.audit.catalogue import CATALOGUE, Kind
from maskrcnn_coco.data.audit.checks import audit, summary
from maskrcnn_coco.data.audit.quarantine import require_usable, to_quarantine
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.audit.show import print_findings

__all__ = [
    "CATALOGUE",
    "Kind",
    "audit",
    "audit_cached",
    "audit_parts",
    "fingerprint",
    "print_findings",
    "repair",
    "require_usable",
    "summary",
    "to_quarantine",
]
