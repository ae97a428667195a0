//! What the fuzz targets share. Each file in `bin/` is a target, and says how its inputs are laid out.

mod input;
mod memory;

pub use input::{Arrival, Input};
pub use memory::overwrite;
