"""What a run writes down, now or, where the disk is full, at the next call: records, incidents, quarantine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskrcnn_coco.data.batch import Source
from maskrcnn_coco.data.prepare import write_quarantine
from maskrcnn_coco.evaluation.finding_pictures import save_finding_images
from maskrcnn_coco.evaluation.pictures import save_incident_images
from maskrcnn_coco.findings.watch import warn
from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, Result, RunFinding, StepRecord, plain, to_json
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.report.incident_files import write_incident
from maskrcnn_coco.report.tracking import Tracker
from maskrcnn_coco.report.tracking_thread import Ending, Fence
from maskrcnn_coco.system.files import in_the_same_folder, write_text
from maskrcnn_coco.training.progress import Progress
from maskrcnn_coco.wording import finding_markdown

Observer = Callable[[Any], None]


@dataclass
class RunLog:
    """Files, observers and console of a run. Only the main process (``writes``) has files."""

    folder: Path
    console: Console
    writes: bool
    observers: Sequence[Observer] = ()
    tracker: Tracker | None = None
    incidents_due: list[Incident] = field(default_factory=list)
    """Incidents whose files are still to be written."""
    quarantine_due: bool = False
    fences: list[Fence] = field(default_factory=list)
    """Tracking servers (--track), each behind a thread of its own."""
    failed: set[int] = field(default_factory=set)
    """Observers that raised, by id."""

    def open(self, resume_step: int | None = None, closed_epochs: int | None = None) -> None:
        """Begin writing records; what was written from ``resume_step`` on is dropped."""
        owed = b"" if self.tracker is None else self.tracker.take_owed()
        self.close()
        if self.writes:
            closed = None if resume_step is None else closed_epochs
            self.tracker = Tracker(self.folder, resume_step, closed, owed=owed, warn=self.console.warn)

    def count_anew(self, step: int) -> None:
        """The run goes on at ``step`` of another count of steps."""
        if self.tracker is not None:
            self.tracker.count_anew(step)

    def close(self) -> None:
        """Flush and close the record files."""
        if self.tracker is not None:
            self.tracker.close()
            self.tracker = None

    def flush(self) -> None:
        """Hand everything written so far to the system."""
        if self.tracker is not None:
            self.tracker.flush()

    def record(self, record: StepRecord | EpochRecord | EvalRecord | Incident) -> None:
        """One record to the files and to the caller's observers; they look and never change training."""
        if self.tracker is not None:
            match record:
                case StepRecord():
                    self.tracker.step(record)
                case EpochRecord():
                    self.tracker.epoch(record)
                case EvalRecord():
                    self.tracker.eval(record)
                case Incident():
                    self.tracker.incident(record)
        self._tell(record)

    def _tell(self, record: Any) -> None:
        watching = [o for o in (*self.observers, *self.fences) if id(o) not in self.failed]
        for observer in watching:
            try:
                with in_the_same_folder():
                    observer(record)
            except Exception as e:
                self.failed.add(id(observer))
                name = getattr(observer, "__qualname__", type(observer).__qualname__)
                self.console.warn(f"the observer {name} raised {type(e).__name__}: {e}; it is not called again")

    def incident(self, incident: Incident, progress: Progress, source: Source) -> None:
        """One incident, everywhere, in five lines on the console; ``source`` gives the pictures of its images."""
        progress.incidents.append(incident.id)
        self.console.incident(incident)
        self.record(incident)
        self.incidents_due.append(incident)
        self.write_due(progress)
        if self.writes:
            try:
                save_incident_images(self.folder, incident, source)
            except Exception as e:  # a picture of odd data is never worth the run
                said = f"{type(e).__name__}: {e}"
                self.console.warn(f"the images of incident {incident.id} were not drawn: {said}")

    def finding(self, finding: RunFinding, progress: Progress, source: Any = None) -> None:
        """One finding, everywhere: console, TensorBoard's text, ``findings.json``, observers, a Python warning.

        ``source``, a `CocoTable` or `UserData`, gives the pictures of the images that it names.
        """
        self._draw(finding, len(progress.findings) + 1, source)
        progress.findings.append(plain(finding))
        self.console.finding(finding)
        if self.tracker is not None:
            self.tracker.text(f"finding/{finding.code}", finding_markdown(finding), progress.step)
        self._tell(finding)
        self.write_findings(progress)
        warn(finding)

    def _draw(self, finding: RunFinding, number: int, source: Any) -> None:
        if not self.writes or self.tracker is None or source is None:
            return
        try:
            pictures = save_finding_images(self.folder, number, finding, source)
        except Exception as e:  # a picture of odd data is never worth the run
            self.console.warn(f"the images of {finding.code} were not drawn: {type(e).__name__}: {e}")
            return
        if pictures:
            finding.detail["pictures"] = pictures

    def write_findings(self, progress: Progress) -> None:
        """``findings.json``: what was found so far, for the report of a run that has not ended."""
        if self.writes and self.tracker is not None:
            try:
                write_text(self.folder / "findings.json", to_json(progress.findings, indent=1))
            except OSError as e:
                self.console.warn(f"{self.folder / 'findings.json'} cannot be written ({e})")

    def write_due(self, progress: Progress) -> None:
        """Incident files and ``quarantine.json``, now or, where the disk is full, at the next call."""
        if not self.writes:
            return
        try:
            while self.incidents_due:
                write_incident(self.folder / "incidents", self.incidents_due[0])
                del self.incidents_due[0]
            if self.quarantine_due:
                write_quarantine(self.folder / "quarantine.json", progress.quarantine, progress.quarantine_annotations)
                self.quarantine_due = False
        except OSError as e:
            self.console.warn(f"{self.folder} cannot be written ({e}); incidents wait in memory, the run goes on")


def end_tracking(log: RunLog, result: Result | None = None, files: Sequence[Path] = (), card: str = "") -> None:
    """Tell every tracking server that the run is over, once; ``result`` None: by an error."""
    for fence in log.fences:
        fence.finish(Ending(result, [f for f in files if f.is_file()], card))
    log.fences = []
