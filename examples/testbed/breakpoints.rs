//! The testbed, built so that `die_at` works: tests let its workers die at chosen moments.

#[path = "../testbed.rs"]
mod testbed;

fn main() -> std::process::ExitCode {
    testbed::main()
}
