"""Pretraining: state, objective, optimizer, schedule, step, loop, checkpoints, metrics."""
