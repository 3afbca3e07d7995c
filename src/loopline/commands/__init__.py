"""The user's own path: a checkpoint and a data file in, a fine-tuned checkpoint out.

    loopline sft --model DIR --data FILE --out DIR

Each command is a short line of stages of its own in the directory given with --out, run by the same store as the whole
line: it resumes, does nothing twice, and says why it runs. Start at `run.py`; `layouts.py` says which files are
understood. Not covered: data that does not fit in memory, several machines.
"""
