//! Rules that other tools check.

use super::Findings;
use crate::fuzz;
use crate::shell::{cargo, succeeds, target_dir, words};
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

/// Runs a tool that prints what it finds itself.
fn tool(command: &mut Command) -> Findings {
    Ok(if succeeds(command)? { Vec::new() } else { vec![format!("`{}` failed", words(command))] })
}

/// What is counted lies outside the workspace, and pulls in code that nothing else does.
const COUNTS: &[&str] = &["--manifest-path", "counts/Cargo.toml"];

/// What is fuzzed lies there as well, and is built as it is run, so that it need not be built twice.
const FUZZ: &[&str] = &["--manifest-path", "fuzz/Cargo.toml"];

/// The same tool on several things, all of it even when the first is broken.
fn each(commands: &mut [Command]) -> Findings {
    commands.iter_mut().map(tool).collect::<Result<Vec<_>>>().map(|findings| findings.concat())
}

pub(super) fn formatting() -> Findings {
    let outside = |of: &[&str]| cargo(&[&["fmt", "--check"], of].concat());
    each(&mut [cargo(&["fmt", "--all", "--check"]), outside(COUNTS), outside(FUZZ)])
}

pub(super) fn clippy() -> Findings {
    let clippy = |of: &[&str]| {
        cargo(&[&["clippy", "--quiet", "--all-targets"], of, &["--", "-D", "warnings"]].concat())
    };
    let mut counts = clippy(COUNTS);
    counts.env("CARGO_TARGET_DIR", target_dir().join("counts"));
    let internals = ["--package", "swoole-reactor", "--package", "swoole-server", "--features", "internals"];
    let breakpoints =
        ["--package", "swoole-server", "--package", "swoole-examples", "--features", "breakpoints"];
    let fuzz = fuzz::instrumented(&["clippy", "--quiet", "--lib", "--bins", "--", "-D", "warnings"]);
    each(&mut [clippy(&["--workspace"]), clippy(&internals), clippy(&breakpoints), counts, fuzz])
}

pub(super) fn docs() -> Findings {
    tool(cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

pub(super) fn unused_dependencies() -> Findings {
    install("machete")?;
    tool(&mut cargo(&["machete"]))
}

pub(super) fn dependencies() -> Findings {
    install("deny")?;
    tool(&mut cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))
}

/// Known vulnerabilities. The database lies on the network: where that is out of reach, this says so and passes.
pub(super) fn advisories() -> Findings {
    install("deny")?;
    let mut command = cargo(&["deny", "--log-level", "error", "check", "advisories"]);
    let output = command.output().with_context(|| format!("start `{}`", words(&command)))?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if database_is_out_of_reach(&text) {
        println!("note: advisories not checked, their database cannot be fetched from here");
        return Ok(Vec::new());
    }
    Ok(text.lines().map(str::to_owned).collect())
}

fn database_is_out_of_reach(text: &str) -> bool {
    text.contains("failed to fetch advisory database")
}

/// Makes `cargo NAME` available.
fn install(name: &str) -> Result<()> {
    let mut probe = cargo(&[name, "--version"]);
    if probe.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let package = format!("cargo-{name}");
    println!("note: installing {package}");
    let mut install = cargo(&["install", "--quiet", "--locked", &package]);
    ensure!(succeeds(&mut install)?, "`{}` failed; install {package} by hand", words(&install));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_database_is_excused() {
        assert!(database_is_out_of_reach(
            "[ERROR] failed to fetch advisory database https://example.org with cli"
        ));
        assert!(!database_is_out_of_reach("error[vulnerability]: a use after free"));
    }

    #[test]
    fn a_failing_tool_is_a_finding() {
        assert!(tool(&mut Command::new("true")).unwrap().is_empty());
        assert_eq!(tool(&mut Command::new("false")).unwrap(), ["`false` failed"]);
        assert!(tool(&mut Command::new("no-such-tool")).is_err());
        let mut three = ["false", "true", "false"].map(Command::new);
        assert_eq!(each(&mut three).unwrap().len(), 2);
    }
}
