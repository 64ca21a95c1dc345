"""Watch a training run or a pipeline: read its files while it runs, find problems, and show them in a terminal or as log lines."""
