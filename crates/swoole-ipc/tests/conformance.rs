//! The contract of `channel`, checked on every channel.

fn main() {}
