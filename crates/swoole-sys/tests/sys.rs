//! Each system call once for what it is for, and once for what its documentation warns of.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::pipe::pipe;
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions, getpid, getppid, kill_process, waitpid};
use swoole_sys::fds::{Readiness, close_all_except, wait_readable};
use swoole_sys::msg::{Key, Limits, Open, Queue, Wait};
use swoole_sys::process::{self, Fork, ForkError, PANIC_EXIT_CODE, fork, run_child};
use swoole_sys::signal::{self, SignalFd, SignalSet};
use swoole_sys::{stack, title, user};

tests![
    fork_makes_a_child_and_names_the_threads_that_forbid_it,
    a_child_ends_by_code_panic_and_signal,
    a_child_does_not_print_what_its_parent_has_buffered,
    a_child_dies_with_its_parent,
    a_child_that_was_orphaned_too_early_dies_as_well,
    a_busy_child_outlives_its_parent_by_no_more_than_it_may,
    a_busy_child_outlives_its_parent_for_as_long_as_it_has_an_heir,
    a_subreaper_inherits_orphans,
    masks_are_sets,
    a_signalfd_reads_what_is_blocked,
    a_signalfd_and_its_epoll_do_not_survive_a_fork,
    handlers_are_reset_and_ignored_signals_stay_ignored,
    everything_but_the_list_is_closed,
    everything_but_the_list_is_closed_without_close_range,
    waiting_tells_readable_closed_and_late_apart,
    a_queue_keeps_messages_apart_by_type,
    a_queue_is_found_by_its_key,
    a_queue_has_limits,
    accounts_are_found_by_name,
    privileges_are_dropped_for_good,
    a_title_is_seen_and_arguments_stay,
    a_stack_is_written_when_a_signal_comes,
];

/// Runs `life` in a child, and returns how that ended: its exit code, or the signal as a negative number.
fn in_child(life: impl FnOnce() -> i32) -> i32 {
    match fork().unwrap() {
        Fork::Child => run_child(life),
        Fork::Parent(pid) => wait_for(pid),
    }
}

fn wait_for(pid: Pid) -> i32 {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status().unwrap_or_else(|| -status.terminating_signal().unwrap())
}

fn wait_forever() -> ! {
    loop {
        rustix::event::pause();
    }
}

/// A line of `/proc/self/status`, without its name.
fn status_line(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

fn fork_makes_a_child_and_names_the_threads_that_forbid_it() {
    let parent = getpid();
    assert_eq!(in_child(|| i32::from(getppid() != Some(parent))), 0);

    let (started, has_started) = mpsc::channel();
    let (end, is_to_end) = mpsc::channel::<()>();
    let life = move || {
        started.send(()).unwrap();
        is_to_end.recv()
    };
    let thread = std::thread::Builder::new().name("log-writer".into()).spawn(life).unwrap();
    has_started.recv().unwrap();
    match fork() {
        Err(error @ ForkError::Threads { count: 2, .. }) => {
            assert!(error.to_string().contains("log-writer"), "{error}");
            assert!(error.to_string().contains("after the fork"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    drop(end);
    assert!(thread.join().unwrap().is_err());
}

fn a_child_ends_by_code_panic_and_signal() {
    assert_eq!(in_child(|| 42), 42);
    assert_eq!(in_child(|| panic!("as expected")), PANIC_EXIT_CODE);
    assert_eq!(in_child(|| process::exit_now(7)), 7);
    let term = in_child(|| {
        signal::raise(Signal::TERM).unwrap();
        wait_forever()
    });
    assert_eq!(term, -Signal::TERM.as_raw());
}

fn a_child_does_not_print_what_its_parent_has_buffered() {
    let (read, write) = pipe().unwrap();
    let code = in_child(|| {
        rustix::stdio::dup2_stdout(&write).unwrap();
        print!("once");
        in_child(|| 0)
    });
    assert_eq!(code, 0);
    drop(write);
    let mut printed = String::new();
    File::from(read).read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "once");
}

fn a_child_dies_with_its_parent() {
    let (read, write) = pipe().unwrap();
    let parent = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let parent = getpid();
            if let Fork::Child = fork().unwrap() {
                process::die_with_parent(Signal::TERM, parent).unwrap();
                rustix::io::write(&write, b"!").unwrap();
            }
            wait_forever();
        }
    };
    drop(write);
    let mut byte = [0];
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));
    kill_process(parent, Signal::KILL).unwrap();
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(0), "end of file: the grandchild is gone too");
}

fn a_child_that_was_orphaned_too_early_dies_as_well() {
    let not_the_parent = Pid::INIT;
    let code = in_child(|| {
        process::die_with_parent(Signal::TERM, not_the_parent).unwrap();
        wait_forever()
    });
    assert_eq!(code, -Signal::TERM.as_raw());
}

fn a_busy_child_outlives_its_parent_by_no_more_than_it_may() {
    let (read, write) = pipe().unwrap();
    let within = Duration::from_millis(200);
    let parent = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let parent = getpid();
            if let Fork::Child = fork().unwrap() {
                process::outlive_parent(within, parent, None).unwrap();
                rustix::io::write(&write, b"!").unwrap();
                loop {
                    std::hint::spin_loop();
                }
            }
            wait_forever();
        }
    };
    drop(write);
    let mut byte = [0];
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));
    let death = std::time::Instant::now();
    kill_process(parent, Signal::KILL).unwrap();
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(0), "end of file: the grandchild is gone too");
    assert!(death.elapsed() >= within);

    let code = in_child(|| {
        process::outlive_parent(within, Pid::INIT, None).unwrap();
        wait_forever()
    });
    assert_eq!(code, -Signal::KILL.as_raw(), "it was orphaned too early");
}

fn a_busy_child_outlives_its_parent_for_as_long_as_it_has_an_heir() {
    let (read, write) = pipe().unwrap();
    let within = Duration::from_millis(100);
    // Of three generations, the youngest is busy.
    let (oldest_tells, middle_dies) = (pipe().unwrap(), pipe().unwrap());
    let oldest = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            process::become_subreaper().unwrap();
            let oldest = getpid();
            if let Fork::Child = fork().unwrap() {
                let middle = getpid();
                if let Fork::Child = fork().unwrap() {
                    process::outlive_parent(within, middle, Some(oldest)).unwrap();
                    rustix::io::write(&middle_dies.1, b"!").unwrap();
                    let begin = std::time::Instant::now();
                    while getppid() != Some(oldest) || begin.elapsed() < 4 * within {
                        std::hint::spin_loop();
                    }
                    rustix::io::write(&oldest_tells.1, b"!").unwrap();
                    loop {
                        std::hint::spin_loop();
                    }
                }
                rustix::io::read(&middle_dies.0, &mut [0]).unwrap();
                process::exit_now(0);
            }
            wait_forever();
        }
    };
    drop(write);
    rustix::io::read(&oldest_tells.0, &mut [0]).unwrap();
    let death = std::time::Instant::now();
    kill_process(oldest, Signal::KILL).unwrap();
    assert_eq!(rustix::io::read(&read, &mut [0]), Ok(0), "end of file: all of them are gone");
    assert!(death.elapsed() >= within);
}

fn a_subreaper_inherits_orphans() {
    process::become_subreaper().unwrap();
    let (read, write) = pipe().unwrap();
    let code = in_child(|| {
        if let Fork::Child = fork().unwrap() {
            rustix::io::read(&read, &mut [0; 1]).unwrap();
            process::exit_now(5);
        }
        0
    });
    assert_eq!(code, 0);
    let orphan = waitpid(None, WaitOptions::NOHANG).unwrap();
    assert!(orphan.is_none(), "a child of this process now, and alive: {orphan:?}");
    rustix::io::write(&write, b"!").unwrap();
    let (_, status) = waitpid(None, WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(5));
}

fn masks_are_sets() {
    let mut set = SignalSet::from([Signal::USR1, Signal::TERM]);
    set.add(Signal::HUP);
    assert!(set.contains(Signal::HUP) && !set.contains(Signal::INT));
    assert_eq!(set.iter().collect::<Vec<_>>(), [Signal::HUP, Signal::USR1, Signal::TERM]);

    let before = signal::block(&set).unwrap();
    let blocked = signal::set_mask(&before).unwrap();
    assert!(set.iter().all(|signal| blocked.contains(signal)));
    assert_eq!(signal::set_mask(&before).unwrap(), before);
}

fn a_signalfd_reads_what_is_blocked() {
    let fd = SignalFd::new(&SignalSet::from([Signal::USR1, Signal::TERM])).unwrap();
    assert_eq!(fd.read().unwrap(), None);
    signal::raise(Signal::USR1).unwrap();
    signal::raise(Signal::USR1).unwrap();
    signal::raise(Signal::TERM).unwrap();
    let first = fd.read().unwrap().unwrap();
    assert_eq!(
        (first.signal, first.pid, first.uid),
        (Signal::USR1, Some(getpid()), rustix::process::getuid().as_raw())
    );
    assert_eq!(fd.read().unwrap().unwrap().signal, Signal::TERM);
    assert_eq!(fd.read().unwrap(), None);
}

/// The reason for "make it after the fork".
fn a_signalfd_and_its_epoll_do_not_survive_a_fork() {
    let fd = SignalFd::new(&SignalSet::from([Signal::USR1])).unwrap();
    let watch = |fd: &SignalFd| {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        epoll
    };
    let count = |epoll: &std::os::fd::OwnedFd| {
        let mut events = Vec::with_capacity(1);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_once)).unwrap()
    };
    let inherited = watch(&fd);
    let code = in_child(|| {
        signal::raise(Signal::USR1).unwrap();
        let own = watch(&fd);
        assert_eq!((count(&inherited), count(&own)), (0, 1));
        0
    });
    assert_eq!(code, 0);
}

fn handlers_are_reset_and_ignored_signals_stay_ignored() {
    signal::ignore(Signal::HUP).unwrap();
    assert_ne!(u64::from_str_radix(&status_line("SigCgt"), 16).unwrap(), 0, "the runtime's own, at least");
    signal::reset_handlers();
    assert_eq!(u64::from_str_radix(&status_line("SigCgt"), 16).unwrap(), 0);
    let ignored = u64::from_str_radix(&status_line("SigIgn"), 16).unwrap();
    let bit = |signal: Signal| 1_u64 << (signal.as_raw() - 1);
    assert_eq!(ignored & bit(Signal::HUP), bit(Signal::HUP));
    assert_eq!(ignored & bit(Signal::PIPE), bit(Signal::PIPE), "a closed socket is an error and not a death");
    signal::default(Signal::HUP).unwrap();
    assert_eq!(signal::ignore(Signal::KILL), Err(Errno::INVAL));
}

/// The descriptors of this process, without the one that lists them.
fn open_fds() -> Vec<RawFd> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let mut fds: Vec<RawFd> = entries
        .filter(|entry| !fs::read_link(entry.path()).unwrap().ends_with("fd"))
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect();
    fds.sort_unstable();
    fds
}

fn everything_but_the_list_is_closed_without_close_range() {
    forbid(libc::SYS_close_range);
    everything_but_the_list_is_closed();
}

/// Has a system call fail with `EPERM`, as the seccomp filters of old container engines do.
fn forbid(call: libc::c_long) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let is_call = libc::sock_filter {
        jt: 0,
        jf: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32)
    };
    let mut filter = [
        statement(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            std::mem::offset_of!(libc::seccomp_data, nr) as u32,
        ),
        is_call,
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is whole; it changes what one system call returns.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
        ]
    };
    assert_eq!(results, [0, 0]);
}

fn everything_but_the_list_is_closed() {
    let files: Vec<RawFd> = (0..10).map(|_| File::open("/dev/null").unwrap().into_raw_fd()).collect();
    let high = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 1000).unwrap().into_raw_fd();
    let keep = [files[3], files[3], high, files[7], -1, 5000];
    close_all_except(&keep).unwrap();
    assert_eq!(open_fds(), [0, 1, 2, files[3], files[7], high]);
    close_all_except(&[]).unwrap();
    assert_eq!(open_fds(), [0, 1, 2]);
}

fn waiting_tells_readable_closed_and_late_apart() {
    let (quiet, _quiet_write) = pipe().unwrap();
    let (loud, loud_write) = pipe().unwrap();
    let (hung_up, hung_up_write) = pipe().unwrap();
    rustix::io::write(&loud_write, b"!").unwrap();
    drop(hung_up_write);
    let list = [quiet.as_raw_fd(), loud.as_raw_fd(), 4321, hung_up.as_raw_fd()];
    let expected =
        [(list[1], Readiness::Readable), (list[2], Readiness::Closed), (list[3], Readiness::Readable)];
    assert_eq!(wait_readable(&list, None).unwrap(), expected);
    assert_eq!(wait_readable(&list[..1], Some(Duration::from_millis(20))).unwrap(), []);
}

fn a_queue_keeps_messages_apart_by_type() {
    let queue = Queue::open(Key::Private, Open::New, 0o600).unwrap();
    queue.send(3, b"three", Wait::Never).unwrap();
    queue.send(1, b"one", Wait::Never).unwrap();
    queue.send(2, b"", Wait::Never).unwrap();
    let stat = queue.stat().unwrap();
    assert_eq!((stat.messages, stat.bytes, stat.last_sender), (3, 8, Some(getpid())));

    let mut buffer = [0; 16];
    assert_eq!(queue.receive(2, &mut buffer, Wait::Never), Ok((2, 0)));
    assert_eq!(queue.receive(-3, &mut buffer, Wait::Never), Ok((1, 3)), "the lowest type first");
    assert_eq!(&buffer[..3], b"one");
    assert_eq!(queue.receive(0, &mut buffer[..2], Wait::Never), Err(Errno::TOOBIG));
    assert_eq!(in_child(|| queue.receive(0, &mut buffer, Wait::Block).map_or(-1, |(_, len)| len as i32)), 5);
    assert_eq!(queue.receive(0, &mut buffer, Wait::Never), Err(Errno::NOMSG));
    queue.remove().unwrap();
    assert!(queue.stat().is_err());
}

fn a_queue_is_found_by_its_key() {
    // A process id is a number that no other run of this test has at the same time.
    let key = Key::Shared((0x5375_0000 | (getpid().as_raw_pid() & 0xffff)).try_into().unwrap());
    assert_eq!(Queue::open(key, Open::Existing, 0), Err(Errno::NOENT));
    let queue = Queue::open(key, Open::New, 0o600).unwrap();
    let found = [Queue::open(key, Open::Existing, 0), Queue::open(key, Open::OrCreate, 0o600)];
    let again = Queue::open(key, Open::New, 0o600);
    queue.remove().unwrap();
    assert_eq!(found, [Ok(queue), Ok(queue)]);
    assert_eq!(again, Err(Errno::EXIST));
}

fn a_queue_has_limits() {
    let limits = Limits::read().unwrap();
    assert!(limits.queues_max > 0 && limits.queue_bytes_max > 0);
    let queue = Queue::open(Key::Private, Open::New, 0o600).unwrap();
    queue.set_bytes_max(100).unwrap();
    let sent = [queue.send(1, &[7; 90], Wait::Never), queue.send(1, &[7; 90], Wait::Never)];
    let too_long = queue.send(1, &vec![7; limits.message_bytes_max as usize + 1], Wait::Never);
    let no_type = queue.send(0, b"", Wait::Never);
    let stat = queue.stat().unwrap();
    queue.remove().unwrap();
    assert_eq!(sent, [Ok(()), Err(Errno::AGAIN)]);
    assert_eq!((too_long, no_type), (Err(Errno::INVAL), Err(Errno::INVAL)));
    assert_eq!(stat.bytes_max, 100);
}

fn accounts_are_found_by_name() {
    let root = user::find_user("root").unwrap().unwrap();
    assert_eq!((root.uid, root.gid, root.home), (Uid::ROOT, Gid::ROOT, "/root".into()));
    assert_eq!(user::find_group("root"), Ok(Some(Gid::ROOT)));
    assert_eq!(user::find_user("no such account"), Ok(None));
    assert_eq!(user::find_group("no such group"), Ok(None));
    assert_eq!(user::find_user("a\0b"), Err(Errno::INVAL));
    assert!(user::find_groups("root", Gid::from_raw(4711)).unwrap().contains(&Gid::from_raw(4711)));
    assert_eq!(user::find_groups("a\0b", Gid::ROOT), Err(Errno::INVAL));
}

fn privileges_are_dropped_for_good() {
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    if !rustix::process::geteuid().is_root() {
        assert_eq!(user::set_groups(&[]), Err(Errno::PERM));
        assert_eq!(user::set_uid(Uid::ROOT), Err(Errno::PERM));
        return;
    }
    user::init_groups("root", Gid::ROOT).unwrap();
    user::set_groups(&[gid]).unwrap();
    user::set_gid(gid).unwrap();
    user::set_uid(uid).unwrap();
    assert_eq!(rustix::process::getgroups().unwrap(), [gid]);
    assert_eq!(status_line("Uid"), "65534\t65534\t65534\t65534");
    assert_eq!(status_line("Gid"), "65534\t65534\t65534\t65534");
    assert_eq!(user::set_uid(Uid::ROOT), Err(Errno::PERM), "there is no way back");
    assert_eq!(user::set_groups(&[Gid::ROOT]), Err(Errno::PERM));
}

fn a_title_is_seen_and_arguments_stay() {
    let seen = || fs::read("/proc/self/cmdline").unwrap();
    let arguments: Vec<String> = std::env::args().collect();
    let path = std::env::var("PATH").unwrap();
    for title in
        ["short", "swoole: worker-3 of a server with a rather long name, listening on port 9501", "s"]
    {
        title::set(title).unwrap();
        let seen = seen();
        let seen = seen.split(|&byte| byte == 0).next().unwrap();
        assert_eq!(str::from_utf8(seen).unwrap(), title);
        let name = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(name.strip_suffix('\n'), Some(&title[..title.len().min(15)]));
    }
    title::set(&"é".repeat(5000)).unwrap();
    title::set("nul\0l").unwrap();
    assert_eq!(fs::read_to_string("/proc/self/comm").unwrap(), "nul\n");
    assert_eq!(std::env::args().collect::<Vec<_>>(), arguments);
    assert_eq!(std::env::var("PATH").unwrap(), path);
}

fn a_stack_is_written_when_a_signal_comes() {
    #[inline(never)]
    fn busy_here() {
        // Taken on the way back from the system call.
        kill_process(getpid(), Signal::URG).unwrap();
        std::hint::black_box(());
    }
    let words = (0..stack::WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let sink: &'static [AtomicU64] = words.leak();
    assert_eq!(stack::write_on_signal(Signal::URG, &sink[1..]), Err(Errno::INVAL));
    assert_eq!(stack::write_on_signal(Signal::KILL, sink), Err(Errno::INVAL));
    stack::write_on_signal(Signal::URG, sink).unwrap();
    assert_eq!(stack::read(sink), (0, vec![]));
    busy_here();
    let (number, addresses) = stack::read(sink);
    assert_eq!(number, 1);
    let lines = stack::describe(getpid().as_raw_pid(), &addresses);
    let at = lines.iter().position(|line| line.contains("busy_here")).unwrap();
    assert!(at < 4, "{lines:#?}");
    assert!(lines[at].contains("tests/sys.rs:"), "{lines:#?}");
    let test = lines.iter().position(|line| line.contains("a_stack_is_written_when")).unwrap();
    assert!(test > 0 && !lines.iter().any(|line| line.contains("swoole_sys::stack::")), "{lines:#?}");
    // Whatever another process has written there.
    sink[1].store(u64::MAX, Ordering::Relaxed);
    let (_, addresses) = stack::read(sink);
    assert_eq!(addresses.len(), stack::FRAMES_MAX);
    stack::describe(1, &[0, 1, u64::MAX]);
}
