"""Grading while others are still being sampled: answers go to the graders as they are finished.

    with Grading(graders, reward) as grading:
        for place, sample in finished:
            grading.add(place, sample)
        grades, components = grading.done(count)

Code runs in the sandbox's processes; a thread here hands it over and waits, so that a slow grader costs time only where
sampling is over before it. Grades do not depend on what is graded together. Not covered: what grades are worth (see
`grading.reward`).
"""

from __future__ import annotations

import queue
import threading
from types import TracebackType

from loopline.grading.grade import Grade, Sample
from loopline.grading.graders import GraderSet
from loopline.grading.reward import RewardConfig


class Grading:
    """One rollout's answers on their way through the graders."""

    def __init__(self, graders: GraderSet, reward: RewardConfig) -> None:
        self.graders, self.names = graders, (None, *reward.graders)
        self._waiting: queue.SimpleQueue[tuple[int, Sample] | None] = queue.SimpleQueue()
        self._grades: dict[str | None, dict[int, Grade]] = {name: {} for name in self.names}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True)
        self._thread.start()

    def add(self, place: int, sample: Sample) -> None:
        """Grade `sample`, to be returned at `place`."""
        self._waiting.put((place, sample))

    def done(self, count: int) -> tuple[list[Grade], dict[str, list[Grade]]]:
        """Grades of the `count` answers by their tasks' own graders, and of each component of the reward.

        Raises whatever a grader raised.
        """
        self._close()
        if self._error is not None:
            raise self._error
        found = {name: [grades[place] for place in range(count)] for name, grades in self._grades.items()}
        own = found.pop(None)
        return own, {name: grades for name, grades in found.items() if name is not None}

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
                for name in self.names:
                    grades = self.graders.grade([sample for _, sample in batch], name)
                    self._grades[name].update(zip([place for place, _ in batch], grades, strict=True))
            except BaseException as error:
                self._error = error

    def _close(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def __enter__(self) -> Grading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
