//! Where a process is at, told to another one: its call stack.
//!
//! [`write_on_signal`] has a process write the addresses of its stack into shared memory whenever a signal comes, whatever
//! it is busy with; [`describe`] finds names for them in a process that executes the same program. Neither needs the right
//! to trace (`ptrace(2)`), which a process that is no ancestor has not everywhere.

use std::ffi::{c_int, c_void};
use std::fs;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::{null_mut, slice_from_raw_parts_mut};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Result;
use rustix::process::Signal;

use crate::check;

/// Words for a stack: how many there were so far, how many addresses this one has, and the addresses.
pub const WORDS: usize = 2 + FRAMES_MAX;
/// The innermost frames that are written; those beyond are left out.
pub const FRAMES_MAX: usize = 62;
/// By what names the handler's own frames go, depending on what debug information there is.
const OWN: [&str; 2] = ["swoole_sys::stack::", "src/stack.rs:"];

/// Where the handler writes.
static SINK: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
static SINK_LEN: AtomicUsize = AtomicUsize::new(0);

/// From now on, when `signal` comes, the thread that takes it writes the addresses of its call stack into `sink`, which
/// has [`WORDS`] words and is shared with whoever wants to know. A signal to the process is taken by its main thread, if
/// that does not block it (`signal(7)`). System calls that it interrupts go on, or fail with `EINTR` as `signal(7)` says for
/// `SA_RESTART`.
///
/// The stack is unwound in the signal handler, which allocates nothing, and takes no lock where the C library finds unwind
/// tables without (glibc 2.35 and later). Elsewhere, a signal in the middle of `dlopen(3)` may block that thread for ever.
///
/// # Errors
///
/// `EINVAL` for a signal that cannot be handled, or for a sink that is too short.
pub fn write_on_signal(signal: Signal, sink: &'static [AtomicU64]) -> Result<()> {
    if sink.len() < WORDS {
        return Err(rustix::io::Errno::INVAL);
    }
    // What is loaded and prepared at the first time, is not in the handler.
    let _ = frames(&mut [0; FRAMES_MAX]);
    SINK_LEN.store(sink.len(), Ordering::Relaxed);
    SINK.store(sink.as_ptr().cast_mut(), Ordering::Release);
    // SAFETY: all zeros is a sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = write_stack as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler is async-signal-safe as far as its doc says.
    check(unsafe { libc::sigaction(signal.as_raw(), &action, null_mut()) })?;
    Ok(())
}

/// The handler: atomics, and the unwinder.
extern "C" fn write_stack(_: c_int) {
    let sink = SINK.load(Ordering::Acquire);
    if sink.is_null() {
        return;
    }
    // SAFETY: a slice of this length and of static life was stored, and none of another length ever is less than WORDS.
    let sink: &[AtomicU64] = unsafe { &*slice_from_raw_parts_mut(sink, SINK_LEN.load(Ordering::Relaxed)) };
    let mut addresses = [0; FRAMES_MAX];
    let count = frames(&mut addresses);
    for (word, address) in sink[2..].iter().zip(addresses) {
        word.store(address, Ordering::Relaxed);
    }
    sink[1].store(count as u64, Ordering::Relaxed);
    sink[0].fetch_add(1, Ordering::Release);
}

/// The innermost frames of this thread; how many.
fn frames(addresses: &mut [u64; FRAMES_MAX]) -> usize {
    let mut count = 0;
    let mut add = |frame: &backtrace::Frame| {
        addresses[count] = frame.ip() as u64;
        count += 1;
        count < FRAMES_MAX
    };
    // SAFETY: what is not synchronized are the symbol tables of other systems; the unwinder is, by itself.
    unsafe { backtrace::trace_unsynchronized(&mut add) };
    count
}

/// What [`write_on_signal`] has written into these words last: how many stacks there were, and this one's addresses,
/// innermost first. Any values are possible, where the process that writes them is not to be trusted.
pub fn read(sink: &[AtomicU64]) -> (u64, Vec<u64>) {
    let number = sink[0].load(Ordering::Acquire);
    let count = sink[1].load(Ordering::Relaxed).min(FRAMES_MAX as u64) as usize;
    (number, sink[2..].iter().take(count).map(|word| word.load(Ordering::Relaxed)).collect())
}

/// Names for the addresses of another process that executes the same program: a line for each call, innermost first, with
/// the place in the source where debug information has it. Reads `/proc/PID/maps`, and loads the debug information of the
/// program, which takes memory and, in a large one, a good part of a second.
pub fn describe(process: i32, addresses: &[u64]) -> Vec<String> {
    let (theirs, ours) = (Maps::read(&process.to_string()), Maps::read("self"));
    let mut lines = Vec::new();
    for &address in addresses.iter().filter(|address| **address != 0) {
        let here = theirs.find(address).and_then(|place| ours.address(&place));
        let mut named = false;
        // A return address is behind the call.
        backtrace::resolve(here.unwrap_or(address).saturating_sub(1) as *mut c_void, |symbol| {
            let Some(name) = symbol.name() else { return };
            named = true;
            lines.push(match (symbol.filename(), symbol.lineno()) {
                (Some(file), Some(line)) => format!("{name:#} ({}:{line})", file.display()),
                _ => format!("{name:#}"),
            });
        });
        if !named {
            lines.push(match theirs.find(address) {
                Some(Place { file, offset }) => format!("{address:#x} ({file}+{offset:#x})"),
                None => format!("{address:#x}"),
            });
        }
    }
    // The handler, and the frame by which the kernel calls it.
    let is_own = |line: &String| OWN.iter().any(|own| line.contains(own));
    let own = lines.iter().rposition(is_own).map_or(0, |last| last + 1);
    let trampoline = lines.get(own).is_some_and(|line| line.contains("restore_rt") || line.starts_with("0x"));
    lines.split_off(own + usize::from(own > 0 && trampoline))
}

/// An address that does not depend on where the file is mapped.
#[derive(Debug, PartialEq)]
struct Place<'a> {
    file: &'a str,
    offset: u64,
}

/// What files a process has mapped where.
#[derive(Default)]
struct Maps {
    mapped: Vec<(Range<u64>, u64, String)>,
}

impl Maps {
    fn read(process: &str) -> Maps {
        Maps::parse(&fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default())
    }

    /// `proc_pid_maps(5)`: addresses, permissions, offset, device, inode, file.
    fn parse(text: &str) -> Maps {
        let entry = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
            let offset = number(fields.nth(1)?)?;
            let file = fields.nth(2)?;
            Some((number(start)?..number(end)?, offset, file.to_owned()))
        };
        Maps { mapped: text.lines().filter_map(entry).collect() }
    }

    fn find(&self, address: u64) -> Option<Place<'_>> {
        let (range, offset, file) = self.mapped.iter().find(|(range, ..)| range.contains(&address))?;
        Some(Place { file, offset: offset + (address - range.start) })
    }

    fn address(&self, place: &Place<'_>) -> Option<u64> {
        let inside = |(range, offset, file): &&(Range<u64>, u64, String)| {
            file == place.file && (*offset..offset + (range.end - range.start)).contains(&place.offset)
        };
        let (range, offset, _) = self.mapped.iter().find(inside)?;
        Some(range.start + (place.offset - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_where_another_process_has_the_same_file() {
        let ours = Maps::parse(
            "55d0-55e0 r--p 00000000 08:01 7 /bin/server\n55e0-55f0 r-xp 00000010 08:01 7 /bin/server\n7f00-7f10 r-xp 00000000 00:00 0\n",
        );
        let theirs = Maps::parse("aae0-aaf0 r-xp 00000010 08:01 7 /bin/server\n");
        let place = theirs.find(0xaae5).unwrap();
        assert_eq!(place, Place { file: "/bin/server", offset: 0x15 });
        assert_eq!(ours.address(&place), Some(0x55e5));
        assert_eq!(theirs.find(0x55e5), None);
        assert_eq!(ours.find(0x7f05), None, "no file");
    }
}
