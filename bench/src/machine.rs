//! What was measured on.

use serde::Serialize;
use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

/// The machine, and when.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that may be used.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Transparent huge pages: they decide what a fork costs.
    pub huge_pages: String,
    /// The compiler.
    pub rustc: String,
    /// When, in UTC.
    pub date: String,
}

impl Machine {
    /// This one, now.
    pub fn this() -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let chosen = |text: String| {
            let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            inside.map_or_else(unknown, |(chosen, _)| chosen.to_owned())
        };
        Machine {
            cpu: cpu_name(&read("/proc/cpuinfo")).unwrap_or_else(unknown),
            cores: available_parallelism().map_or(0, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            huge_pages: chosen(read("/sys/kernel/mm/transparent_hugepage/enabled")),
            rustc: said(Command::new("rustc").arg("--version")),
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M"])),
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Machine { cpu, cores, kernel, rustc, date, .. } = self;
        format!("{cpu}, {cores} cores, Linux {kernel}, {rustc}, {date} UTC; load and servers share the cores")
    }
}

fn unknown() -> String {
    "unknown".into()
}

fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

fn said(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    output.map_or_else(unknown, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(cpu_name("processor : 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu_name(""), None);
    }
}
