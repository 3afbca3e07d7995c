"""The lowest layer: typed configs, user-facing errors and atomic files, shared by every package above.

It holds nothing of the line itself and imports nothing from Loopline.
"""
