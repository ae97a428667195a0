//! What decides about a count besides the code.

use crate::shell;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::process::Command;

/// Counts made under different conditions say nothing about each other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conditions {
    pub(super) rustc: String,
    /// Architecture, and what memchr and the C library choose by: callgrind shows both the same processor on every
    /// machine, but for AVX2.
    pub(super) cpu: String,
    /// It copies the bytes and keeps the heap.
    pub(super) libc: String,
    pub(super) valgrind: String,
}

impl Conditions {
    /// Those of this machine.
    pub(super) fn here() -> Result<Self> {
        let valgrind = shell::output(Command::new("valgrind").arg("--version")).context(
            "counting needs valgrind: `apt-get install valgrind`, or what your distribution has for it",
        )?;
        let rustc = shell::output(Command::new("rustc").arg("--version").current_dir(shell::root()))?;
        // Only the GNU C library has an answer.
        let libc = shell::output(Command::new("getconf").arg("GNU_LIBC_VERSION")).unwrap_or_default();
        Ok(Self {
            rustc: rustc.trim().trim_start_matches("rustc ").to_owned(),
            cpu: cpu(),
            libc: libc.trim().to_owned(),
            valgrind: valgrind.trim().trim_start_matches("valgrind-").to_owned(),
        })
    }

    /// How `self` and `here` differ, for a message; `None` when they do not.
    pub(super) fn differences(&self, here: &Self) -> Option<String> {
        let differences: Vec<String> = self
            .named()
            .into_iter()
            .zip(here.named())
            .filter(|(ours, theirs)| ours != theirs)
            .map(|((what, ours), (_, theirs))| {
                format!("{what} was {ours:?} when they were made, here it is {theirs:?}")
            })
            .collect();
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// Each with the name that it has in the file.
    pub(super) fn named(&self) -> [(&'static str, &str); 4] {
        [("rustc", &self.rustc), ("cpu", &self.cpu), ("libc", &self.libc), ("valgrind", &self.valgrind)]
    }
}

fn cpu() -> String {
    let arch = std::env::consts::ARCH;
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        return format!("{arch} avx2");
    }
    arch.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_named() {
        let of = |rustc: &str, libc: &str| Conditions {
            rustc: rustc.to_owned(),
            cpu: "x86_64".to_owned(),
            libc: libc.to_owned(),
            valgrind: "3.19.0".to_owned(),
        };
        assert_eq!(of("1.95.0", "glibc 2.36").differences(&of("1.95.0", "glibc 2.36")), None);
        let differences = of("1.95.0", "glibc 2.36").differences(&of("1.96.0", "")).unwrap();
        assert_eq!(
            differences,
            "rustc was \"1.95.0\" when they were made, here it is \"1.96.0\"; \
             libc was \"glibc 2.36\" when they were made, here it is \"\""
        );
    }
}
