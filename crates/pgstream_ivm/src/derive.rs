//! Deriving deltas.
