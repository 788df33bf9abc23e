//! Stage 1: magnitude-preserving layers, U-Net, preconditioning and loss, EMA, sampler.
