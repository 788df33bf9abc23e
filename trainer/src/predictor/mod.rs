//! Stage 2: MSFE-Net, fusion, gene decoder.
