//! Arguments in, messages and progress out; no logic.
