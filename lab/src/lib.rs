//! rolegate's test bed.
