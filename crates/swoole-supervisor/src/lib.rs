//! Fork, reap, respawn, reload and stop groups of worker processes.
