//! The project's own runner.

fn main() {}
