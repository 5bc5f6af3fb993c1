"""Running rounds: the host loop, rollback, alerts, checkpoints, run folders."""
