"""One training loop for any task: settings, loop, runs on disk, checkpoints, interrupts."""
