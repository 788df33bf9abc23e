//! The pipeline: read, find tissue, batch, infer, write, on bounded queues.
