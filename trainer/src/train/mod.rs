//! The two training loops, checkpoints and logging.
