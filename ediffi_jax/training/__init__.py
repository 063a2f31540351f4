"""Training: mesh, state, step, loop, checkpoints, and what watches a run; the loop is in `loop.py`."""
