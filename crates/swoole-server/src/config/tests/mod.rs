mod addresses;
mod table;

use super::keys::{KEYS, Kind};
use super::*;
use std::ffi::OsString;
use std::path::Path;

/// What `validate` accepts, to be spoilt one key at a time.
fn valid() -> Config {
    Config {
        listen: vec!["tcp://127.0.0.1:0".parse().unwrap()],
        worker_num: 4,
        reactor_num: 2,
        ..Config::default()
    }
}

fn load(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    Sources::new(valid()).load(flags.iter().map(OsString::from), env.collect::<Vec<_>>())
}

fn error(flags: &[&str], env: &[(&str, &str)]) -> String {
    load(flags, env).unwrap_err().to_string()
}

/// Runs `test` with the path of a file that holds `text`.
fn with_file<T>(text: &str, test: impl FnOnce(&str) -> T) -> T {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("swoole-config-{}-{number}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let result = test(path.to_str().unwrap());
    std::fs::remove_file(&path).unwrap();
    result
}

/// The names that serde knows of the struct, from the struct itself.
fn field_names() -> Vec<&'static str> {
    struct Spy<'a>(&'a mut Vec<&'static str>);

    impl<'de> serde::Deserializer<'de> for Spy<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_struct<V: serde::de::Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.0.extend(fields);
            visitor.visit_map(serde::de::value::MapDeserializer::new(std::iter::empty::<(&str, &str)>()))
        }

        fn deserialize_any<V: serde::de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            unreachable!("a derived struct asks for a struct")
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names = Vec::new();
    Config::deserialize(Spy(&mut names)).unwrap();
    names
}

#[test]
fn the_table_and_the_struct_have_the_same_keys() {
    assert_eq!(KEYS.iter().map(|key| key.name).collect::<Vec<_>>(), field_names());
}

#[test]
fn every_choice_of_the_table_is_accepted_and_no_other() {
    for key in KEYS {
        if let Kind::Choice(names) = key.kind {
            for name in names {
                let flag = format!("{}={name}", key.flag());
                // Some mean something in a sandbox only.
                let strict = key.name.starts_with("worker_sandbox_").then_some("--worker-sandbox=strict");
                let trusted = key.name.starts_with("proxy_").then_some("--proxy-trusted=::/0");
                let flags = [&[flag.as_str()], strict.as_slice(), trusted.as_slice()].concat();
                let config = load(&flags, &[]).unwrap();
                assert_eq!(toml::Table::try_from(&config).unwrap()[key.name].as_str(), Some(*name));
            }
            assert!(error(&[&key.flag(), "nonsense"], &[]).contains(&format!("must be {}", key.expected())));
        }
    }
}

#[test]
fn every_range_holds_at_both_ends_and_no_further() {
    // Rings of the largest size need room, many workers too.
    let accepts = |key: &str, value: String| {
        let mut flags = vec!["--ring-memory-max=64G".to_owned(), "--reactor-num=1".to_owned()];
        if key == "message_queue_key" {
            flags.push("--task-ipc-mode=msgqueue".to_owned());
        }
        if key.ends_with("watermark") {
            flags.push("--socket-buffer-size=1G".to_owned());
        }
        if key == "buffer_low_watermark" {
            flags.push("--buffer-high-watermark=1G".to_owned());
        }
        flags.push(format!("--{}={value}", key.replace('_', "-")));
        let outcome = load(&flags.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        if let Err(error) = &outcome {
            // What was read is told as it would be written best.
            let best = value::size::parse(&value).map(value::size::format);
            let begins = |value: &String| {
                let start = format!("flag --{}: {key} = {value}: must be ", key.replace('_', "-"));
                error.to_string().starts_with(&start)
            };
            assert!(begins(&value) || best.as_ref().is_some_and(begins), "{error}");
        }
        outcome.is_ok()
    };
    for key in KEYS {
        let ((min, max), below, above) = match key.kind {
            Kind::Count(min, max) => (
                (min.to_string(), max.to_string()),
                (min as i64 - 1).to_string(),
                (i128::from(max) + 1).to_string(),
            ),
            Kind::Size(min, max) => (
                (value::size::format(min), value::size::format(max)),
                (min as i64 - 1).to_string(),
                (max + 1).to_string(),
            ),
            Kind::Seconds(min, max) => {
                ((min.to_string(), max.to_string()), (min - 0.05).to_string(), (max + 0.5).to_string())
            }
            _ => continue,
        };
        if key.name != "ring_memory_max" {
            assert!(accepts(key.name, min), "{}", key.name);
        }
        assert!(accepts(key.name, max), "{}", key.name);
        assert!(!accepts(key.name, below), "{}", key.name);
        assert!(!accepts(key.name, above), "{}", key.name);
    }
}

#[test]
fn watermarks_bound_each_other() {
    assert_eq!(load(&["--socket-buffer-size=1M"], &[]).unwrap().high_watermark(), (1 << 20) / 5 * 4);
    assert_eq!(load(&["--buffer-high-watermark=64K"], &[]).unwrap().high_watermark(), 64 << 10);
    assert_eq!(
        error(&["--socket-buffer-size=64K", "--buffer-high-watermark=65537"], &[]),
        "flag --buffer-high-watermark: buffer_high_watermark = 65537: must be at most socket_buffer_size = 64K"
    );
    assert_eq!(
        error(&["--buffer-high-watermark=64K", "--buffer-low-watermark=64K"], &[]),
        "flag --buffer-low-watermark: buffer_low_watermark = 64K: must be less than buffer_high_watermark = 64K"
    );
}

#[test]
fn each_source_wins_over_the_one_before() {
    with_file("worker_num = 5\nbacklog = 6\nmax_request = 7\n", |file| {
        let config = load(
            &["--config", file, "--max-request=9"],
            &[
                ("SWOOLE_BACKLOG", "8"),
                ("SWOOLE_MAX_REQUEST", "8"),
                ("SWOOLE_PORT", "tcp://10.0.0.1"),
                ("HOME", "/"),
            ],
        )
        .unwrap();
        assert_eq!((config.reactor_num, config.worker_num, config.backlog, config.max_request), (2, 5, 8, 9));
    });
}

#[test]
fn errors_name_the_source_the_key_the_value_and_the_range() {
    assert_eq!(error(&["--worker-num", "0"], &[]), "flag --worker-num: worker_num = 0: must be 1..=1024");
    assert_eq!(
        error(&["--worker-num", "70000"], &[]),
        "flag --worker-num: worker_num = 70000: must be 1..=1024"
    );
    assert_eq!(error(&["--reactor-num=two"], &[]), "flag --reactor-num: reactor_num = two: must be 1..=64");
    assert_eq!(
        error(&[], &[("SWOOLE_WORKER_NUM", "-1")]),
        "environment SWOOLE_WORKER_NUM: worker_num = -1: must be 1..=1024"
    );
    assert_eq!(
        error(&["--daemonize=maybe"], &[]),
        "flag --daemonize: daemonize = maybe: must be true or false"
    );
    assert_eq!(
        error(&["--dispatch-key-length=65536"], &[]),
        "flag --dispatch-key-length: dispatch_key_length = 65536: must be 0..=65535"
    );
    assert_eq!(error(&["--mode=threads"], &[]), "flag --mode: mode = threads: must be process or base");
    assert_eq!(
        error(&["--on-crash", "retry", "--mode", "base"], &[]),
        "flag --on-crash: on_crash = retry: must be close in Base mode, where a worker's connections go with it"
    );
    assert_eq!(
        error(&["--reload-parallel=0"], &[]),
        "flag --reload-parallel: reload_parallel = 0: must be 1..=1024"
    );
    assert_eq!(
        error(&[], &[("SWOOLE_MAX_MEMORY", "2000G")]),
        "environment SWOOLE_MAX_MEMORY: max_memory = 2000G: must be 0..=1024G"
    );
    assert_eq!(
        error(&["--ring-size=100000"], &[]),
        "flag --ring-size: ring_size = 100000: must be a power of two, 16K..=64M"
    );
    assert_eq!(
        error(&["--framing=eof", "--package-eof", r"\x41\x4"], &[]),
        r"flag --package-eof: package_eof = \x41\x4: must be 1..=8 bytes, with escapes \n \r \t \0 \xNN \\"
    );
    assert_eq!(
        error(&["--wroker-num=1"], &[]),
        "flag --wroker-num: unknown key wroker-num; --help lists all"
    );
    assert_eq!(error(&["--worker-num"], &[]), "flag --worker-num: needs a value");
    assert_eq!(error(&["start"], &[]), "unexpected argument \"start\"; --help lists all flags");
    assert_eq!(
        Config::default().validate().unwrap_err().to_string(),
        "listen = []: must hold an address, as tcp://127.0.0.1:9501"
    );
}

#[test]
fn errors_of_a_file_name_its_line() {
    let file_error =
        |text: &str| with_file(text, |file| error(&["--config", file], &[]).replace(file, "FILE"));
    assert_eq!(
        file_error("backlog = 5\n\nworker_num = 0\n"),
        "FILE: line 3: worker_num = 0: must be 1..=1024"
    );
    assert_eq!(file_error("# x\nworker_num = \"4\"\n"), "FILE: line 2: worker_num = 4: must be 1..=1024");
    assert_eq!(file_error("\nwroker_num = 4\n"), "FILE: line 2: unknown key wroker_num; --help lists all");
    assert!(file_error("a = 1\nb = = 2\n").starts_with("FILE: line 2: "));
    assert_eq!(
        error(&["--config", "/nonexistent/x.toml"], &[]),
        "flag --config: read /nonexistent/x.toml: No such file or directory (os error 2)"
    );
}

#[test]
fn a_list_of_addresses_replaces_the_one_below() {
    let listen = |config: Config| config.listen.iter().map(Listen::to_string).collect::<Vec<_>>();
    let flags = ["--listen=tcp://[::1]:9501", "--listen", "unix:///tmp/a.sock"];
    assert_eq!(listen(load(&flags, &[]).unwrap()), ["tcp://[::1]:9501", "unix:///tmp/a.sock"]);
    let env = [("SWOOLE_LISTEN", "tcp://0.0.0.0:1, tcp://0.0.0.0:2")];
    assert_eq!(listen(load(&[], &env).unwrap()), ["tcp://0.0.0.0:1", "tcp://0.0.0.0:2"]);
    for text in ["listen = 'unix:///x'", "listen = ['unix:///x']"] {
        assert_eq!(with_file(text, |file| listen(load(&["--config", file], &[]).unwrap())), ["unix:///x"]);
    }
}

#[test]
fn addresses_say_what_is_wrong_with_them() {
    let ours = "`tcp://localhost:80` is no address to listen on: ";
    assert!(
        error(&["--listen=tcp://localhost:80"], &[]).starts_with(&format!("flag --listen: listen: {ours}"))
    );
    let env = [("SWOOLE_LISTEN", "tcp://0.0.0.0:1,tcp://localhost:80")];
    assert!(error(&[], &env).starts_with(&format!("environment SWOOLE_LISTEN: listen: {ours}")));
    for text in ["udp://127.0.0.1:1?on_crash=retry&crash_retries=2", "unixgram:///x"] {
        let listen: Listen = text.parse().unwrap();
        assert_eq!(listen.to_string(), text);
        Config { listen: vec![listen], ..Config::default() }.validate().unwrap();
    }
    let text = "udp://127.0.0.1:1?package_max_length=64";
    assert_eq!(
        error(&["--listen", text], &[]),
        format!("flag --listen: listen = {text}: must have no framing: a datagram is a packet")
    );
    assert!(error(&["--listen=tls:///x"], &[]).starts_with("flag --listen: listen: "));
}

#[test]
fn values_are_read_as_people_write_them() {
    let config = load(
        &[
            "--ring-size",
            "64k",
            "--package-max-length=4096",
            "--socket-buffer-size=1G",
            "--max-memory=96M",
            "--reload-parallel=3",
            "--max-wait-time=0.5",
            "--daemonize",
        ],
        &[("SWOOLE_OPEN_TCP_NODELAY", "false")],
    )
    .unwrap();
    assert_eq!(
        (config.ring_size, config.package_max_length, config.socket_buffer_size),
        (64 << 10, 4096, 1 << 30)
    );
    assert_eq!((config.max_memory, config.reload_parallel), (96 << 20, 3));
    assert_eq!(config.max_wait_time, Duration::from_millis(500));
    assert!(config.daemonize && !config.open_tcp_nodelay);
    let written = "max_wait_time = 2\nring_size = 65536\npackage_eof = \"\\r\\n\"\npackage_length_type = 'v'";
    let config: Config = toml::from_str(written).unwrap();
    assert_eq!((config.max_wait_time, config.ring_size), (Duration::from_secs(2), 65536));
    assert_eq!((&*config.package_eof, config.package_length_type), (&b"\r\n"[..], LengthType::U16Le));
    assert_eq!(load(&["--package-eof", r"\n\0\xff\\'"], &[]).unwrap().package_eof, b"\n\0\xff\\'");
    for wrong in ["", "K", "-1", "+1", "1T", "1.5M", "99999999999G"] {
        assert_eq!(value::size::parse(wrong), None, "{wrong}");
    }
}

proptest::proptest! {
    #[test]
    fn what_is_printed_is_read_back(size: usize, bytes: Vec<u8>) {
        assert_eq!(value::size::parse(&value::size::format(size)), Some(size));
        assert_eq!(value::escaped::parse(&bytes.escape_ascii().to_string()).as_deref(), Ok(&*bytes));
    }

    #[test]
    fn no_text_makes_it_panic(key in 0..KEYS.len(), text: String) {
        let key = &KEYS[key];
        let variable = format!("SWOOLE_{}", key.name.to_uppercase());
        let by_flag = load(&[&key.flag(), &text], &[]);
        let by_variable = load(&[], &[(&variable, &text)]);
        // A switch takes no second word, a list of addresses has commas in the environment only.
        if !matches!(key.kind, Kind::Switch | Kind::Listen) {
            assert_eq!(by_flag.is_ok(), by_variable.is_ok(), "{by_flag:?} {by_variable:?}");
        }
    }
}

#[test]
fn a_configuration_survives_toml() {
    let mut config = valid();
    config.pid_file = Some("/run/app.pid".into());
    config.package_eof = (0..=255).collect();
    config.package_length_type = LengthType::U64Le;
    config.backend = Backend::IoUring;
    config.max_request_grace = Some(3);
    config.max_memory = 3 << 20;
    assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn rings_shrink_to_the_memory_that_they_may_take() {
    let config = |reactor_num, worker_num, ring_memory_max| Config {
        reactor_num,
        worker_num,
        ring_memory_max,
        ..valid()
    };
    assert_eq!(config(2, 4, 128 * MIB).ring_bytes(), 512 * KIB);
    assert_eq!(config(8, 16, 128 * MIB).ring_bytes(), 512 * KIB);
    assert_eq!(config(8, 17, 128 * MIB).ring_bytes(), 256 * KIB);
    let many = config(64, 1024, GIB);
    assert_eq!(
        many.validate().unwrap_err().to_string(),
        "ring_memory_max = 1G: must be at least 2G for worker_num = 1024 and reactor_num = 64"
    );
    let sum = |config: Config| 2 * 64 * 1024 * config.ring_bytes();
    assert_eq!(sum(config(64, 1024, 2 * GIB)), 2 * GIB);
}

#[test]
fn the_options_of_framing_must_fit() {
    let eof = Config { framing: Framing::Eof, package_eof: b"\n".to_vec(), open_eof_split: false, ..valid() };
    eof.validate().unwrap();
    let length =
        Config { framing: Framing::Length, package_length_offset: 2, package_body_offset: 6, ..valid() };
    length.validate().unwrap();
    let nothing_fits = Config { package_max_length: 64, package_length_offset: 61, ..length };
    assert_eq!(
        nothing_fits.validate().unwrap_err().to_string(),
        "package_max_length = 64: must be at least 65, the header's size, or no packet can be accepted"
    );
    // Where a function says the length, there is no such header.
    Config { package_length_func: Some("mine".into()), ..nothing_fits }.validate().unwrap();
    let long = Config { package_eof: vec![b'x'; 9], ..eof };
    assert!(
        long.validate().unwrap_err().to_string().starts_with("package_eof = xxxxxxxxx: must be 1..=8 bytes")
    );
}

#[test]
fn the_grace_is_half_of_more_than_ten_requests() {
    let grace =
        |max_request, max_request_grace| Config { max_request, max_request_grace, ..valid() }.request_grace();
    assert_eq!([grace(0, None), grace(10, None), grace(11, None), grace(1000, Some(0))], [0, 0, 5, 0]);
}

#[test]
fn connections_are_bounded_by_open_files() {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let few = Config { max_connection: 1, ..valid() };
    assert_eq!(few.connection_limit().unwrap(), 1);
    // 4 workers and 2 reactors have 8 each, each pair of them 4 if it is one of sockets, and 128 are for all else.
    for (ipc, links) in [(Ipc::Ring, 0), (Ipc::SocketPair, 4 * 8)] {
        let many = Config { max_connection: 1_000_000, ipc, ..valid() }.connection_limit().unwrap();
        assert_eq!(many as u64, files.saturating_sub(128 + 6 * 8 + links).clamp(1, 1_000_000));
    }
    let huge = Config { worker_num: 1024, reactor_num: 64, ipc: Ipc::SocketPair, ..valid() };
    let needed = 128 + 8 * (1024 + 64) + 4 * 1024 * 64;
    match huge.connection_limit() {
        Ok(limit) => assert!(files > needed && limit > 0),
        Err(error) => {
            assert!(files <= needed);
            assert!(
                error.to_string().contains(&format!("needs {needed} open files and may have {files}")),
                "{error}"
            );
        }
    }
}

#[test]
fn help_shows_every_key_with_range_and_default() {
    let (mut id, mut quiet) = (None, false);
    let sources = Sources::new(valid())
        .option("crash-on-start", "ID", "tests", &mut id)
        .switch("quiet", "hush", &mut quiet);
    let help = sources.help();
    for line in [
        "  --worker-num N                           worker processes [1..=1024, default 4]",
        "  --ring-size SIZE                         bytes of one ring, a power of two [16K..=64M, default 512K]",
        r"  --package-eof BYTES                      eof: the delimiter [default \r\n]",
        "  --max-memory SIZE                        bytes of private memory above which a worker is replaced in its turn, \
         0 for no limit [0..=1024G, default 0]",
        "  --daemonize[=true|false]                 leave the terminal and go on in the background [default false]",
        "  --crash-on-start ID                      tests",
        "  --quiet                                  hush",
    ] {
        assert!(help.lines().any(|have| have == line), "{line}\n{help}");
    }
    assert!(KEYS.iter().all(|key| help.contains(&format!("  {}", key.flag()))), "{help}");
    assert!(matches!(sources.load(["-h".into()], []), Err(ConfigError::Help(text)) if text == help));
    assert!(Config::help().contains("--config FILE") && Path::new("/").is_absolute());
}

#[test]
fn the_programs_own_flags_are_its_own() {
    let (mut id, mut quiet) = (None, false);
    let sources = Sources::new(valid()).option("id", "ID", "", &mut id).switch("quiet", "", &mut quiet);
    sources.load(["--id=7", "--quiet", "--worker-num=1"].map(Into::into), []).unwrap();
    assert_eq!((id.as_deref(), quiet), (Some("7"), true));
    let sources = Sources::new(valid()).switch("quiet", "", &mut quiet);
    let error = sources.load(["--quiet=no".into()], []).unwrap_err().to_string();
    assert_eq!(error, "flag --quiet: takes no value");
}

#[test]
fn who_dispatches_by_a_function_has_one() {
    let custom = Config { dispatch_mode: DispatchMode::Custom, ..valid() };
    let error = custom.check_custom(false).unwrap_err().to_string();
    assert_eq!(
        error,
        "dispatch_mode = custom: needs a function, which only the program can give: Server::dispatch"
    );
    assert!(custom.check_custom(true).is_ok() && valid().check_custom(false).is_ok());
    // Where nothing is dispatched, nobody is needed who does.
    assert!(Config { mode: Mode::Base, ..custom }.check_custom(false).is_ok());
}

#[test]
fn a_key_is_where_it_is_said_to_be() {
    let key = |dispatch_key_offset, dispatch_key_length| {
        Config { dispatch_key_offset, dispatch_key_length, ..valid() }.dispatch_key()
    };
    assert_eq!((key(3, 4), key(0, 1), key(5, 0)), (3..7, 0..1, 5..usize::MAX));
}

#[test]
fn lists_of_paths_come_from_everywhere() {
    let strict = "--worker-sandbox=strict";
    let both = ["/", "/dev"].map(PathBuf::from);
    let config = load(&[strict, "--worker-sandbox-read=/", "--worker-sandbox-read", "/dev"], &[]).unwrap();
    assert_eq!(config.worker_sandbox_read, both);
    let config = load(&[strict], &[("SWOOLE_WORKER_SANDBOX_WRITE", "/, /dev")]).unwrap();
    assert_eq!(config.worker_sandbox_write, both);
    for toml in ["worker_sandbox_read = \"/\"", "worker_sandbox_read = [\"/\"]"] {
        let config: Config = toml::from_str(toml).unwrap();
        assert_eq!(config.worker_sandbox_read, both[..1]);
    }
    assert_eq!(
        error(&[strict, "--worker-sandbox-read=/no/such"], &[]),
        "flag --worker-sandbox-read: worker_sandbox_read = /no/such: must be a file or directory that exists"
    );
}

#[test]
fn a_sandbox_that_would_not_be_one_is_refused() {
    for flag in ["--worker-sandbox-read=/", "--worker-sandbox-write=/", "--worker-sandbox-connect=any"] {
        let error = error(&["--worker-sandbox=basic", flag], &[]);
        assert!(error.ends_with("has no effect without worker_sandbox = strict"), "{error}");
    }
    let base = ["--worker-sandbox=strict", "--mode=base"];
    assert!(
        error(&[&base[..], &["--backend=io_uring"]].concat(), &[])
            .contains("backend = io_uring: must be auto")
    );
    for backend in ["--backend=auto", "--backend=epoll"] {
        load(&[&base[..], &[backend]].concat(), &[]).unwrap();
    }
    assert!(error(&["--chroot=/no/such"], &[]).contains("chroot = /no/such: must be a directory"));
    assert!(error(&["--user="], &[]).contains("user = : must be the name or number of a user"));
}
