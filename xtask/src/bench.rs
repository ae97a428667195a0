//! `bench`: builds what is measured and what measures, and hands over to the driver in `bench/`.
//!
//! That is a workspace of its own, so that the project never builds the foreign runtimes it compares itself with.

use crate::shell::{cargo, root, succeeds, target_dir};
use crate::{Verdict, shell};
use anyhow::ensure;
use std::process::Command;

/// The driver has the same.
pub(crate) const HELP: &str = include_str!("../../bench/src/help.txt");

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    let args: Vec<_> = args.raw_args()?.collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        print!("{HELP}");
        return Ok(true);
    }
    // One directory for both, where the driver finds the server beside itself.
    let target = target_dir();
    let manifest = root().join("bench/Cargo.toml");
    for mut build in [
        cargo(&["build", "--quiet", "--release", "--package", "swoole-examples", "--example", "testbed"]),
        cargo(&["build", "--quiet", "--release", "--bins", "--manifest-path", &manifest.to_string_lossy()]),
    ] {
        build.arg("--target-dir").arg(&target);
        ensure!(succeeds(&mut build)?, "`{}` failed", shell::words(&build));
    }
    succeeds(Command::new(target.join("release/swoole-bench")).args(args))
}
