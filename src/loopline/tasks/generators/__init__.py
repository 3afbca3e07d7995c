"""Synthetic task families and pretraining documents with a split that no instance can cross.

Use `generate_tasks`, `write_tasks` and `generate_documents` from `loopline.tasks.generators.generate` with a
`GeneratorConfig`. Not covered: turning documents into shards (see the stages of `loopline.corpus`).
"""
