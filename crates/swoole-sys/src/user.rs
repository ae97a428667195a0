//! Look up accounts and drop privileges.
//!
//! The order that leaves nothing behind: **groups, then gid, then uid**. After the uid is gone, so is the
//! right to change the groups. All three change the whole process: glibc and musl make every thread follow,
//! which the bare system calls, and rustix, do not.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::io::{Errno, Result};
use rustix::process::{Gid, Uid};

/// An account, as `getent passwd` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: Uid,
    /// The number of its first group.
    pub gid: Gid,
    /// Its home directory.
    pub home: PathBuf,
}

/// The longest record that a lookup makes room for. A group of ten thousand members needs a tenth of it.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// The account called `name`, or `None`: `getpwnam_r(3)`.
///
/// # Errors
///
/// `EINVAL` when the name holds a NUL; what the name service fails with: `EIO`, `EMFILE`, `ENOMEM`.
pub fn find_user(name: &str) -> Result<Option<User>> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    with_room(|buffer| {
        let mut record = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: the name ends with a NUL, the record and the buffer are writable and live until the end of
        // this closure, and the length is the buffer's.
        let error = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                record.as_mut_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut found,
            )
        };
        lookup_result(error, found, |record: &libc::passwd| {
            // SAFETY: a record that was found has strings that end with a NUL, inside the buffer.
            let home = unsafe { CStr::from_ptr(record.pw_dir) };
            User {
                uid: Uid::from_raw(record.pw_uid),
                gid: Gid::from_raw(record.pw_gid),
                home: OsStr::from_bytes(home.to_bytes()).into(),
            }
        })
    })
}

/// The number of the group called `name`, or `None`: `getgrnam_r(3)`.
///
/// # Errors
///
/// As [`find_user`].
pub fn find_group(name: &str) -> Result<Option<Gid>> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    with_room(|buffer| {
        let mut record = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: as in `find_user`.
        let error = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                record.as_mut_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut found,
            )
        };
        lookup_result(error, found, |record: &libc::group| Gid::from_raw(record.gr_gid))
    })
}

/// The groups that the account called `name` is a member of, and `gid`: `getgrouplist(3)`. For [`set_groups`], where the name
/// service is not to be asked.
///
/// # Errors
///
/// `EINVAL` when the name holds a NUL; `ENOMEM` with more than 65,536.
pub fn find_groups(name: &str, gid: Gid) -> Result<Vec<Gid>> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = groups.len() as libc::c_int;
        // SAFETY: the name ends with a NUL, and the list has room for as many numbers as the count says.
        let found =
            unsafe { libc::getgrouplist(name.as_ptr(), gid.as_raw(), groups.as_mut_ptr(), &mut count) };
        if found >= 0 {
            groups.truncate(count.unsigned_abs() as usize);
            return Ok(groups.into_iter().map(Gid::from_raw).collect());
        }
        if groups.len() >= GROUPS_MAX {
            return Err(Errno::NOMEM);
        }
        groups.resize(groups.len() * 4, 0);
    }
}

/// The kernel's limit of groups of a process.
const GROUPS_MAX: usize = 1 << 16;

/// Runs a lookup with a larger and larger buffer until its record fits in.
fn with_room<T>(mut lookup: impl FnMut(&mut [u8]) -> Result<Option<T>>) -> Result<Option<T>> {
    let mut buffer = vec![0; 1024];
    loop {
        match lookup(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < RECORD_BYTES_MAX => buffer.resize(buffer.len() * 4, 0),
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Reads the answer of a `get*nam_r`. Some name services say "no such name" with an error of this list.
fn lookup_result<R, T>(error: libc::c_int, found: *mut R, read: impl FnOnce(&R) -> T) -> Result<Option<T>> {
    match error {
        // SAFETY: where the answer is not null, it points to the record that the caller passed and libc
        // filled in, and the caller holds it until this returns.
        0 => Ok(unsafe { found.as_ref() }.map(read)),
        libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
        error => Err(Errno::from_raw_os_error(error)),
    }
}

/// First step of dropping privileges: makes `groups` the supplementary groups of this process. An empty list
/// drops all, among them those of root that were inherited: `setgroups(2)`.
///
/// # Errors
///
/// `EPERM` without `CAP_SETGID`; `EINVAL` with more than 65,536.
pub fn set_groups(groups: &[Gid]) -> Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the pointer is to as many group ids as the length says.
    crate::check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) }).map(drop)
}

/// First step of dropping privileges, the usual way: the supplementary groups become those that the account
/// called `name` is a member of, and `gid`: `initgroups(3)`.
///
/// # Errors
///
/// `EINVAL` when the name holds a NUL; `EPERM` without `CAP_SETGID`; `ENOMEM`.
pub fn init_groups(name: &str, gid: Gid) -> Result<()> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: the name ends with a NUL.
    crate::check(unsafe { libc::initgroups(name.as_ptr(), gid.as_raw()) }).map(drop)
}

/// Second step: `setgid(2)`. For root it sets the real, the effective and the saved id, so that there is no
/// way back.
///
/// # Errors
///
/// `EPERM` without `CAP_SETGID`, unless it is a group that this process has already.
pub fn set_gid(gid: Gid) -> Result<()> {
    // SAFETY: setgid takes a number.
    crate::check(unsafe { libc::setgid(gid.as_raw()) }).map(drop)
}

/// Last step: `setuid(2)`. For root it sets the real, the effective and the saved id, so that there is no
/// way back.
///
/// The kernel forgets [`crate::process::die_with_parent`] here: call that again.
///
/// # Errors
///
/// `EPERM` without `CAP_SETUID`, unless it is a user that this process is already; `EAGAIN` at that user's
/// limit of processes on kernels before 3.1: treat every error as "not dropped" and stop.
pub fn set_uid(uid: Uid) -> Result<()> {
    // SAFETY: setuid takes a number.
    crate::check(unsafe { libc::setuid(uid.as_raw()) }).map(drop)
}
