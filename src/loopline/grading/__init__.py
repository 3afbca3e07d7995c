"""Judgement: tasks, graders, rewards, audits of graders, statistics, and the evaluation of a checkpoint.

Start at `grade.py` (what a grade is) and `graders.py` (from definitions to grades). Not covered: judges that are
models (a policy may be wrapped as a `python` grader's server by the recipe's owner), human preference labels.
"""
