//! DiffBulk trainer.
