//! Building the program of the hot paths, and running it under callgrind.

use crate::shell::{cargo, output, succeeds, target_dir};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program, built.
pub(super) struct Program {
    path: PathBuf,
    /// Where callgrind writes.
    dir: PathBuf,
}

impl Program {
    pub(super) fn build() -> Result<Self> {
        let target = target_dir().join("counts");
        let mut build = cargo(&["build", "--quiet", "--release", "--manifest-path", "counts/Cargo.toml"]);
        // The user's flags would be other conditions.
        build.env("RUSTFLAGS", "").env_remove("CARGO_ENCODED_RUSTFLAGS").env("CARGO_TARGET_DIR", &target);
        ensure!(succeeds(&mut build)?, "the operations to count do not build");
        let dir = target.join("callgrind");
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { path: target.join("release/swoole-counts"), dir })
    }

    /// The names of all operations.
    pub(super) fn list(&self) -> Result<Vec<String>> {
        Ok(output(Command::new(&self.path).arg("--list"))?.lines().map(str::to_owned).collect())
    }

    /// Instructions per operation.
    pub(super) fn count(&self, name: &str) -> Result<f64> {
        let file = self.dir.join(name.replace('/', "-"));
        let mut command = Command::new("valgrind");
        // The user's variables would be other conditions.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path))).current_dir(&self.dir);
        command.args(["--quiet", "--tool=callgrind", "--dump-before=swoole_counts::boundary"]);
        command.arg(format!("--callgrind-out-file={}", file.display())).arg(&self.path).arg(name);
        let operations: f64 =
            output(&mut command)?.trim().parse().context("read how many operations it did")?;
        // The first part is what came before the first boundary, the last is the program's end.
        let (once, twice) = (total(&part(&file, 2))?, total(&part(&file, 3))?);
        Ok((twice - once) / operations)
    }
}

/// The file of a part, which ends at a call of `boundary`.
fn part(file: &Path, number: u32) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// All instructions of a part.
fn total(file: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse_total(&text).with_context(|| format!("{} has no total", file.display()))
}

/// Of an output file that counts instructions only: <https://valgrind.org/docs/manual/cl-format.html>.
fn parse_total(text: &str) -> Option<f64> {
    let instructions_only = text.lines().any(|line| line == "events: Ir");
    let total: u64 = text.lines().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()?;
    instructions_only.then_some(total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        let file = "\
# callgrind format
version: 1
part: 2

desc: Trigger: --dump-before=swoole_counts::boundary

positions: line
events: Ir
summary: 1496048

fn=(1) totals: 7
12 3

totals: 1496050
";
        assert_eq!(parse_total(file), Some(1_496_050.0));
        assert_eq!(parse_total(&file.replace("events: Ir", "events: Ir Dr")), None);
        assert_eq!(parse_total(&file.replace("totals: 1", "totals: x")), None);
        assert_eq!(parse_total("events: Ir\n"), None);
    }

    #[test]
    fn parts_are_numbered_behind_the_name() {
        assert_eq!(part(Path::new("a/b-1.2"), 3), Path::new("a/b-1.2.3"));
    }
}
