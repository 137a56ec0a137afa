//! rolegate.
