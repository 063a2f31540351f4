"""The verbs, run as `python -m launch.<verb>`; each `--help` teaches with an example."""
