"""Grading while others are still being sampled: answers may go to the graders as they are finished.

    with Grading(graders, also=("steps",)) as grading:
        for place, sample in finished:
            grading.add(place, sample)
        grades, components = grading.done(samples)

Graders that run code do so in the sandbox's processes; a thread here hands answers over and waits, so that a slow
grader costs time only where sampling is over before it. What was not added is graded at the end. Grades do not depend
on what is graded together. Not covered: what grades are worth (see `grading.reward`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType

from loopline.grading.grade import Grade, Sample
from loopline.grading.graders import GraderSet


class Grading:
    """Answers on their way through the graders: their tasks' own, and those of the set that `also` names."""

    def __init__(self, graders: GraderSet, also: Sequence[str] = ()) -> None:
        self.graders, self.names = graders, (None, *also)
        self._waiting: queue.SimpleQueue[tuple[int, Sample] | None] = queue.SimpleQueue()
        self._grades: dict[str | None, dict[int, Grade]] = {name: {} for name in self.names}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def add(self, place: int, sample: Sample) -> None:
        """Grade `sample`, which is to be number `place` of those passed to `done`, in the background."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grading", daemon=True)
            self._thread.start()
        self._waiting.put((place, sample))

    def done(self, samples: Sequence[Sample]) -> tuple[list[Grade], dict[str, list[Grade]]]:
        """Grades of all `samples` by their tasks' own graders, and by each of `also`.

        Raises whatever a grader raised.
        """
        self._close()
        if self._error is not None:
            raise self._error
        missing = [place for place in range(len(samples)) if place not in self._grades[None]]
        if missing:
            self._grade([(place, samples[place]) for place in missing])
        found = {name: [grades[place] for place in range(len(samples))] for name, grades in self._grades.items()}
        own = found.pop(None)
        return own, {name: grades for name, grades in found.items() if name is not None}

    def _grade(self, batch: Sequence[tuple[int, Sample]]) -> None:
        for name in self.names:
            grades = self.graders.grade([sample for _, sample in batch], name)
            self._grades[name].update(zip([place for place, _ in batch], grades, strict=True))

    def _work(self) -> None:
        """Grade whatever waits, all of it at once, until the end."""
        ended = False
        while not ended:
            items = [self._waiting.get()]
            while True:
                try:
                    items.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            ended = None in items
            batch = [item for item in items if item is not None]
            if not batch or self._error is not None:
                continue
            try:
                self._grade(batch)
            except BaseException as error:
                self._error = error

    def _close(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def __enter__(self) -> Grading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
