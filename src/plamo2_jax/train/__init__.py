"""Training: task, state, optimizer, schedule, step, loop, checkpoints, metrics."""
