//! Composite objects.

mod erasure;
mod galois;

pub use galois::Kernel;
