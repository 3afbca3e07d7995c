"""Synthetic task sets and pretraining documents in three parts (train, dev, heldout) that share no instance.

Use `generate_tasks`, `write_tasks` and `generate_documents` from `loopline.tasks.generators.generate` with a
`GeneratorConfig`. Not covered: turning documents into shards (see the stages of `loopline.corpus`).
"""
