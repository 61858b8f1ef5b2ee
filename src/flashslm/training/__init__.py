"""Training: the loop, optimizer, schedule, weight normalisation, exact-resume checkpoints, short proxy runs."""
