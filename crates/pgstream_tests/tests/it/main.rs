//! All scenarios, as one binary.
