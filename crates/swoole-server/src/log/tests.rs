use super::*;
use std::sync::{Arc, Mutex};

/// Keeps what each write got.
#[derive(Clone, Default)]
struct Writes(Arc<Mutex<Vec<String>>>);

impl io::Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Writes {
    type Writer = Writes;

    fn make_writer(&'w self) -> Writes {
        self.clone()
    }
}

/// What is written, write by write, while `speak` runs at level debug.
fn written(speak: impl FnOnce()) -> Vec<String> {
    let writes = Writes::default();
    tracing::subscriber::with_default(subscriber(LevelFilter::DEBUG, writes.clone()), speak);
    Arc::into_inner(writes.0).unwrap().into_inner().unwrap()
}

/// A line without its time, which is checked to be one.
fn untimed(line: &str) -> &str {
    let (date, rest) = line.strip_prefix('[').unwrap().split_once(' ').unwrap();
    let (time, rest) = rest.split_once(' ').unwrap();
    let shape = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "0");
    assert_eq!((shape(date).as_str(), shape(time).as_str()), ("0000-00-00", "00:00:00.000"), "{line}");
    rest
}

#[test]
fn a_line_has_swooles_format_and_is_one_write() {
    let pid = std::process::id();
    let lines = written(|| {
        set_thread_identity(Identity { role: Role::Worker, id: 7 });
        tracing::info!(session = 12, peer = ?"a\nb", "accepted {}", 3);
        set_thread_identity(Identity { role: Role::Reactor, id: 1 });
        tracing::warn!("slow");
        tracing::trace!("not shown at level debug");
    });
    let rest: Vec<_> = lines.iter().map(|line| untimed(line)).collect();
    assert_eq!(
        rest,
        [
            format!("*{pid}.7]\tINFO\taccepted 3 session=12 peer=\"a\\nb\"\n"),
            format!("@{pid}.1]\tWARNING\tslow\n"),
        ]
    );
}

#[test]
fn a_thread_speaks_for_its_process_unless_it_says_otherwise() {
    let mark = || {
        let line = written(|| tracing::error!("x")).remove(0);
        untimed(&line).chars().next().unwrap()
    };
    assert_eq!(std::thread::spawn(mark).join().unwrap(), '%');
    let of_many = [Role::Worker, Role::TaskWorker, Role::UserProcess, Role::Reactor];
    for role in [Role::Master, Role::Manager].into_iter().chain(of_many) {
        let given = Identity { role, id: u32::MAX };
        assert_eq!(Identity::unpack(given.pack()), given);
    }
    set_identity(Identity { role: Role::Master, id: 0 });
    assert_eq!(std::thread::spawn(mark).join().unwrap(), '#');
    set_identity(Identity { role: Role::Starting, id: 0 });
}

#[test]
fn what_others_write_cannot_look_like_a_line_or_command_a_terminal() {
    let lines = written(|| tracing::info!("a\n[2026-01-01 fake]\r\x1b[31m\tz\u{7}\u{9b}"));
    assert!(
        lines[0].ends_with("\tINFO\ta\n\t[2026-01-01 fake]\\r\\x1b[31m\tz\\x07\\u{9b}\n"),
        "{:?}",
        lines[0]
    );
}

#[test]
fn a_long_line_is_cut_at_a_character_and_says_so() {
    let long = "ä".repeat(LINE_MAX);
    let lines = written(|| tracing::info!("{long}{}", "end"));
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert!(line.len() <= LINE_MAX && line.len() > LINE_MAX - FRAME_ROOM, "{}", line.len());
    let kept = line.matches('ä').count() * 2;
    assert!(line.ends_with(&format!("ä ... ({} bytes cut)\n", 2 * LINE_MAX + 3 - kept)), "{kept}");
}

#[test]
fn spans_are_named_with_their_fields() {
    let lines = written(|| {
        let _outer = tracing::info_span!("start").entered();
        let _inner = tracing::info_span!("bind", port = 80).entered();
        tracing::info!("done");
    });
    assert!(lines[0].ends_with("\tINFO\tstart: bind{port=80}: done\n"), "{:?}", lines[0]);
}

#[test]
fn a_line_that_found_no_room_is_not_gone_on_with() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    let (mut room, torn) = (vec![0; 1 << 20], AtomicBool::new(false));
    let mut take = || rustix::io::read(&reader, &mut room).map(|count| room[..count].to_vec()).unwrap();
    append(&writer, b"one\n", &torn).unwrap();
    assert_eq!(take(), b"one\n");
    // More than any pipe holds: what fits is written.
    assert_eq!(append(&writer, &vec![b'x'; 2 << 20], &torn), Err(Errno::AGAIN));
    assert!(take().iter().all(|byte| *byte == b'x'));
    append(&writer, b"two\n", &torn).unwrap();
    append(&writer, b"three\n", &torn).unwrap();
    assert_eq!(take(), b"\ntwo\nthree\n");
}

/// The only test that touches the process's own log file and subscriber.
#[test]
fn a_moved_file_is_opened_again_under_the_same_descriptor() {
    let directory = std::env::temp_dir().join(format!("swoole-log-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (path, moved) = (directory.join("a.log"), directory.join("a.log.1"));

    let error = open(&directory.join("none/a.log")).unwrap_err();
    assert!(error.to_string().contains("none/a.log: No such file"), "{error}");
    assert_eq!(descriptor(), None);

    init(LogLevel::Info, Some(&path)).unwrap();
    let before = descriptor().unwrap();
    tracing::info!("first");
    std::fs::rename(&path, &moved).unwrap();
    reopen().unwrap();
    tracing::info!("second");
    init(LogLevel::Info, Some(&directory.join("none/a.log"))).expect("a second call changes nothing");
    assert_eq!(descriptor(), Some(before));

    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let (old, new) = (read(&moved), read(&path));
    assert!(old.contains("\tfirst\n") && !old.contains("second"), "{old}");
    assert!(new.contains("\tsecond\n") && !new.contains("first"), "{new}");
    std::fs::remove_dir_all(&directory).unwrap();
}
