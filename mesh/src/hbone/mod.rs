//! hbone.
