"""Stage 9, release: which checkpoint goes out is a decision, declared before the numbers are seen.

`release.stage:release` chooses among candidates; `release.stage:gate` decides whether a retrained candidate replaces
the champion; `release.stage:gate_benchmarks` compares two bases. Serving is `loopline.serve`.
"""
