//! A limit to how long a process may outlive its parent, whatever it is busy with.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Result;
use rustix::process::{Pid, getppid};

use crate::check;

/// Ends this process when its time is over.
static TIMER: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// Nanoseconds.
static WITHIN: AtomicU64 = AtomicU64::new(0);
/// Whoever else may be the parent; 0 for nobody.
static HEIR: AtomicI32 = AtomicI32::new(0);

/// Gives this process `within` to end when its parent dies; then it is killed, also in the middle of a computation or a
/// sleep. It is not told of the death otherwise.
///
/// With an `heir`, an ancestor that is the parent from then on ([`become_subreaper`](crate::process::become_subreaper)), it
/// has `within` from when neither of them is alive.
///
/// "Parent" is as for [`die_with_parent`](crate::process::die_with_parent), which this takes the place of. For itself it
/// takes a timer, `timer_create(2)`, and the signal `SIGRTMAX`, which must not be blocked; a system call that the death
/// meets goes on afterwards, or fails with `EINTR` as `signal(7)` says for `SA_RESTART`. A forked child has none of it.
///
/// # Errors
///
/// `EAGAIN` when the kernel has no room for a timer. Otherwise it does not fail.
pub fn outlive_parent(within: Duration, parent: Pid, heir: Option<Pid>) -> Result<()> {
    let mut timer = null_mut();
    // SAFETY: all zeros is a sigevent, of which only the fields set here are looked at for SIGEV_SIGNAL.
    let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    // SAFETY: both pointers are to live values of the right types.
    check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) })?;
    WITHIN.store(within.as_nanos() as u64, Ordering::Relaxed);
    HEIR.store(heir.map_or(0, Pid::as_raw_pid), Ordering::Relaxed);
    TIMER.store(timer, Ordering::Release);
    let death = libc::SIGRTMAX();
    // SAFETY: all zeros is a sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = set_timer as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is async-signal-safe, see there.
    check(unsafe { libc::sigaction(death, &action, null_mut()) })?;
    // SAFETY: PR_SET_PDEATHSIG takes a number and no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, death) })?;
    // It may have died before.
    if getppid() != Some(parent) {
        set_timer(death);
    }
    Ok(())
}

/// The handler: it only reads atomics, asks who the parent is, and sets a timer, which signal-safety(7) allows; that cannot
/// fail here, so `errno` stays as it was.
extern "C" fn set_timer(_: c_int) {
    // The kernel gives it another parent before it tells of the last one's death, and tells of the next one's, too.
    let heir = Pid::from_raw(HEIR.load(Ordering::Relaxed));
    if heir.is_some() && getppid() == heir {
        return;
    }
    let within = Duration::from_nanos(WITHIN.load(Ordering::Relaxed).max(1));
    let value = libc::timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // SAFETY: the timer was made before this became a handler, and is never deleted.
    unsafe { libc::timer_settime(TIMER.load(Ordering::Acquire), 0, &once, null_mut()) };
}
