"""Tasks, graders and sources for tests of rollouts."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loopline.attempts.attempt import Attempt
from loopline.chat.tokenizer import Tokenizer
from loopline.grading.grade import Grade
from loopline.grading.graders import GraderSet
from loopline.grading.reward import RewardConfig
from loopline.inference.engine import TorchEngine
from loopline.rl.collect import Collector
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.group import Group
from loopline.rl.rollout import RolloutSource
from loopline.rl.rollout_config import RolloutConfig
from loopline.tasks.task import Task
from tests.support_graders import DEFINITIONS
from tests.support_model import tiny_model

CONFIG = PolicyGradientConfig(prompts_per_step=4, group_size=4, max_new_tokens=6)
SHARES = {"arithmetic": 0.5, "ordering": 0.5}


def task(number, task_set="arithmetic", grader="parity"):
    messages = ({"role": "user", "content": f"{number}+1=?"},)
    return Task(id=f"{task_set}-{number}", task_set=task_set, messages=messages, answer=str(number + 1), grader=grader)


TASKS = {"arithmetic": [task(n) for n in range(5)], "ordering": [task(n, "ordering") for n in range(3)]}


class ParityGraders(GraderSet):
    """Grades by the text's length: even pays, odd does not, multiples of three cannot be graded."""

    def __init__(self):
        super().__init__(DEFINITIONS)
        self.asked = Counter()

    def grade(self, samples, name=None):
        self.asked[name] += len(samples)
        sizes = [len(sample.text.encode()) for sample in samples]
        return [Grade(None if size % 3 == 0 else float(size % 2 == 0)) for size in sizes]


def make_group(completions, grades, rewards, advantages, text="a", of=None):
    """A group of these completions, all with one text, graded and rewarded."""
    pairs = enumerate(zip(completions, grades, strict=True))
    attempts = [Attempt(of or task(1), n, (3, 50, 4), done, text, grade) for n, (done, grade) in pairs]
    return Group(attempts, rewards, advantages)


def policy(seed=3):
    return tiny_model(seed, max_position_embeddings=256)


def make_collector(tokenizer, graders, model=None, config=CONFIG, rollout=None, **changes):
    settings = {"tasks_by_set": TASKS, "shares": SHARES, "reward": RewardConfig(), "seed": 7, **changes}
    engine = TorchEngine(model or policy(), tokenizer)
    return Collector(engine, graders=graders, config=config, rollout=rollout or RolloutConfig(), **settings)


def make_source(tokenizer, graders, record, model=None, config=CONFIG, rollout=None, source=None, **changes):
    """`source` are the settings of `RolloutSource`, `changes` those of its collector."""
    collector = make_collector(tokenizer, graders, model, config, rollout, **changes)
    return RolloutSource(collector, record, **(source or {}))


@dataclass(frozen=True)
class Plan:
    """Builds the sampler of `make_collector` in another process."""

    tokenizer: Path
    rollout: RolloutConfig

    @contextmanager
    def make(self):
        with ParityGraders() as graders:
            yield make_collector(Tokenizer.load(self.tokenizer), graders, policy(11), rollout=self.rollout)
