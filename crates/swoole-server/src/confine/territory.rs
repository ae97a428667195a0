//! What a process may reach by name: landlock(7).

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
};

use crate::config::{Config, SandboxConnect};
use crate::error::{Error, Result};

/// What is known to it is restricted, and a kernel that knows less is refused.
const VERSION: ABI = ABI::V6;

/// What those may be for that are written to: not to be executed, nor to stand for a device.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | RemoveFile | RemoveDir | MakeReg | MakeDir | MakeSym | MakeFifo
        | MakeSock | Refer
});

/// Rules that hold the files which they are about, and are not in force yet.
pub(super) struct Territory(RulesetCreated);

impl Territory {
    /// The rules of this configuration, for a process that can still see what they are about.
    pub(super) fn survey(config: &Config) -> Result<Territory> {
        let mut ruleset = create(config.worker_sandbox_connect).map_err(|error| {
            let what =
                "worker_sandbox = strict (landlock of Linux 6.12, among the security modules in force)";
            Error::setup(what, error)
        })?;
        let (read, device) = (AccessFs::from_read(VERSION), AccessFs::ReadFile | AccessFs::WriteFile);
        // To find names for a backtrace's addresses. One that was replaced or removed meanwhile is nobody's need.
        let comforts = own_files().into_iter().map(|path| (path, read));
        let comforts = comforts.chain([("/dev/null".into(), device), ("/dev/urandom".into(), device)]);
        for (path, access) in comforts {
            if let Ok(file) = PathFd::new(&path) {
                ruleset = allow(ruleset, (&path, file), access)?;
            }
        }
        let tmpdir = (config.task_worker_num > 0).then_some(&config.task_tmpdir);
        let write = config.worker_sandbox_write.iter().chain(tmpdir).map(|path| (path, WRITE));
        for (path, access) in config.worker_sandbox_read.iter().map(|path| (path, read)).chain(write) {
            let file = PathFd::new(path);
            let file = file
                .map_err(|error| Error::setup(format!("open {} for the sandbox", path.display()), error))?;
            ruleset = allow(ruleset, (path, file), access)?;
        }
        Ok(Territory(ruleset))
    }

    /// From here on nothing else can be reached.
    pub(super) fn enter(self) -> Result<()> {
        self.0.restrict_self().map(drop).map_err(|error| Error::setup("enter the sandbox (landlock)", error))
    }
}

fn create(connect: SandboxConnect) -> Result<RulesetCreated, RulesetError> {
    let net = match connect {
        SandboxConnect::Any => AccessNet::BindTcp.into(),
        SandboxConnect::None | SandboxConnect::Unix => AccessNet::from_all(VERSION),
    };
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(VERSION))?
        .handle_access(net)?
        .scope(Scope::from_all(VERSION))?
        .create()
}

fn allow(
    ruleset: RulesetCreated,
    (path, file): (&Path, PathFd),
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated> {
    // What is said of a directory only, the kernel does not take for a file.
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(VERSION) };
    ruleset
        .add_rule(PathBeneath::new(file, access))
        .map_err(|error| Error::setup(format!("allow {} in the sandbox", path.display()), error))
}

/// The program, and its libraries.
fn own_files() -> Vec<PathBuf> {
    let mut files = parse_maps(&fs::read_to_string("/proc/self/maps").unwrap_or_default());
    files.sort_unstable();
    files.dedup();
    files
}

/// The files in proc_pid_maps(5) that still have a name.
fn parse_maps(text: &str) -> Vec<PathBuf> {
    let file = |line: &str| line.find('/').map(|start| line[start..].to_owned());
    let files = text.lines().filter_map(file).filter(|file| !file.ends_with(" (deleted)"));
    files.filter(|file| !file.starts_with("/dev/")).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_mapped_and_have_a_name() {
        let maps = "55d0-55e0 r--p 00000000 08:01 7                  /opt/my server/bin\n\
                    7f00-7f10 rw-s 00000000 00:01 8                  /memfd:swoole (deleted)\n\
                    7f10-7f20 rw-s 00000000 00:01 8                  /dev/zero\n\
                    7f20-7f30 rw-p 00000000 00:00 0                  [heap]\n\
                    7f30-7f40 rw-p 00000000 00:00 0\n\
                    7f40-7f50 r-xp 00001000 08:01 9                  /lib/libc.so.6\n";
        let files = ["/opt/my server/bin", "/lib/libc.so.6"].map(PathBuf::from);
        assert_eq!(parse_maps(maps), files);
        assert!(own_files().contains(&std::env::current_exe().unwrap()));
    }
}
