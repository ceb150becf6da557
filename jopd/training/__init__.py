"""The training loop and what it stands on: state, step, checkpoints, logs and the console."""
