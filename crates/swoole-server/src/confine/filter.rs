//! What a process may ask of the kernel: seccomp(2).
//!
//! Lists of what is refused, not of what is allowed: handlers are anybody's code, and what a C library calls for them changes
//! from one version to the next.

use std::collections::BTreeMap;
use std::fs;

use libc::{
    AF_INET, AF_INET6, AF_UNIX, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID,
    CLONE_NEWUSER, CLONE_NEWUTS, ENOSYS, EPERM, SOCK_DGRAM, SYS_clone, SYS_clone3, SYS_connect, SYS_ioctl,
    SYS_socket, SYS_socketpair, TIOCLINUX, TIOCSTI,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

use crate::config::{Config, SandboxConnect, WorkerSandbox};
use crate::error::{Error, Result};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// To look into other processes, and to change the system.
const BASIC: &[i64] = &[
    // Other processes: their memory, their descriptors, what they share.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Files by number, past the directories above them.
    libc::SYS_open_by_handle_at,
    // Programs in the kernel, and what helps to attack it.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    // Name spaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    // The whole machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
];

#[cfg(target_arch = "x86_64")]
const BASIC_HERE: &[i64] =
    &[libc::SYS_kexec_file_load, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const BASIC_HERE: &[i64] = &[];

/// A server of its own; and queues by which system calls are made that no filter sees.
const STRICT: &[i64] =
    &[libc::SYS_listen, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

const NAMESPACES: [i32; 7] =
    [CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET];

/// The low bits of a socket's type; above them are flags.
const SOCK_TYPE: u64 = 0xf;

/// Whether this kernel has it.
pub(super) fn check() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    if status.lines().any(|line| line.starts_with("Seccomp:")) {
        return Ok(());
    }
    Err(Error::setup("worker_sandbox (seccomp)", "this kernel has none (CONFIG_SECCOMP_FILTER)"))
}

/// Puts this configuration's filter in force, for this process and all that it starts.
pub(super) fn install(config: &Config) -> Result<()> {
    let failed = |error| Error::setup("enter the sandbox (seccomp)", error);
    apply_filter(&unknown()).map_err(|error| failed(error.into()))?;
    let program = compile(config.worker_sandbox, config.worker_sandbox_connect).map_err(failed)?;
    apply_filter(&program).map_err(|error| failed(error.into()))
}

/// System calls that are not to exist. Of clone3(2) a filter cannot see what it is asked for, and C libraries do without
/// it. The numbers of x86-64's second set of system calls (x32) are none that the other filter knows.
fn unknown() -> BpfProgram {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const IS_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const X32: u32 = 0x4000_0000;
    let (number, missing) = (0, libc::SECCOMP_RET_ERRNO | ENOSYS as u32);
    vec![
        sock_filter { code: LOAD, jt: 0, jf: 0, k: number },
        sock_filter { code: IS, jt: 1, jf: 0, k: SYS_clone3 as u32 },
        sock_filter { code: IS_AT_LEAST, jt: 0, jf: 1, k: X32 },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: missing },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

fn compile(
    sandbox: WorkerSandbox,
    connect: SandboxConnect,
) -> Result<BpfProgram, Box<dyn std::error::Error + Send + Sync>> {
    let is_strict = sandbox == WorkerSandbox::Strict;
    let strict = if is_strict { STRICT } else { &[] };
    // No rule for its arguments is: whatever they are.
    let mut rules: Rules =
        BASIC.iter().chain(BASIC_HERE).chain(strict).map(|number| (*number, Vec::new())).collect();
    let namespaces = NAMESPACES.map(|flag| flag as u64);
    rules.insert(SYS_clone, any(namespaces.map(|flag| [when(0, SeccompCmpOp::MaskedEq(flag), flag)]))?);
    // To type into the terminal from which the server was started.
    let typing = [TIOCSTI, TIOCLINUX].map(|request| [when(1, SeccompCmpOp::Eq, request)]);
    rules.insert(SYS_ioctl, any(typing)?);
    if is_strict {
        refuse_sockets(&mut rules, connect)?;
    }
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM as u32), arch)?;
    Ok(filter.try_into()?)
}

fn refuse_sockets(rules: &mut Rules, connect: SandboxConnect) -> Result<(), seccompiler::BackendError> {
    let is_not = |family: i32| when(0, SeccompCmpOp::Ne, family as u64);
    match connect {
        SandboxConnect::None => {
            rules.insert(SYS_socket, Vec::new());
            rules.insert(SYS_connect, Vec::new());
            // One of a pair could send to any other that has a name.
            let datagrams = when(1, SeccompCmpOp::MaskedEq(SOCK_TYPE), SOCK_DGRAM as u64);
            rules.insert(SYS_socketpair, any([[datagrams]])?);
        }
        SandboxConnect::Unix => _ = rules.insert(SYS_socket, any([[is_not(AF_UNIX)]])?),
        SandboxConnect::Any => {
            _ = rules.insert(SYS_socket, any([[is_not(AF_UNIX), is_not(AF_INET), is_not(AF_INET6)]])?);
        }
    }
    Ok(())
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

fn when(argument: u8, operation: SeccompCmpOp, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, operation, value)
}

/// One rule for each list, whose conditions must all hold.
fn any<const N: usize, const M: usize>(
    rules: [[Condition; M]; N],
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule =
        |conditions: [Condition; M]| SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?);
    rules.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_compiles_and_strict_is_more() {
        let basic = compile(WorkerSandbox::Basic, SandboxConnect::None).unwrap();
        for connect in [SandboxConnect::None, SandboxConnect::Unix, SandboxConnect::Any] {
            assert!(compile(WorkerSandbox::Strict, connect).unwrap().len() > basic.len());
        }
    }

    /// What a program of comparisons and returns says of a system call's number.
    fn judge(program: &[sock_filter], number: u32) -> u32 {
        let mut at = 1;
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let holds = match u32::from(code) {
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => number == k,
                _ => number >= k,
            };
            at += 1 + usize::from(if holds { jt } else { jf });
        }
    }

    #[test]
    fn what_is_not_to_exist_does_not() {
        let missing = libc::SECCOMP_RET_ERRNO | ENOSYS as u32;
        for number in [SYS_clone3 as u32, 0x4000_0000, 0x4000_0000 + 521, u32::MAX] {
            assert_eq!(judge(&unknown(), number), missing, "{number:#x}");
        }
        for number in [0, SYS_clone as u32, SYS_clone3 as u32 - 1, SYS_clone3 as u32 + 1, 0x3fff_ffff] {
            assert_eq!(judge(&unknown(), number), libc::SECCOMP_RET_ALLOW, "{number:#x}");
        }
    }
}
