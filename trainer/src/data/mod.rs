//! Importers from the layouts that exist into one paired dataset on disk.
