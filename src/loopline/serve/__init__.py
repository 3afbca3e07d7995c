"""Stage 9, service: an OpenAI-compatible server over the engine, its recorded traffic, and a terminal chat client.

`loopline serve` and `loopline chat` are the commands; `serve.stage:traffic` is the stage of the line. Which
checkpoint is released is not decided here (see `loopline.release`).
"""
