//! What an address may say of itself.

use super::*;

#[test]
fn an_address_has_options_of_its_own() {
    let text = "tcp://127.0.0.1:9502?on_crash=retry&crash_retries=3";
    let listen: Listen = text.parse().unwrap();
    assert_eq!((listen.on_crash, listen.crash_retries), (Some(OnCrash::Retry), Some(3)));
    assert_eq!((listen.to_string().as_str(), listen.url().as_str()), (text, "tcp://127.0.0.1:9502"));
    assert_eq!("unix:///a?".parse::<Listen>().unwrap().to_string(), "unix:///a");
    for (options, complaint) in [
        ("on_crash=maybe", "on_crash = maybe: must be close, retry or drop"),
        ("crash_retries=-1", "crash_retries = -1: must be 0..=100"),
        ("on_crash", "on_crash = : must be close, retry or drop"),
        (
            "on_crash=drop&backlog=7",
            "an address has no option `backlog`, only on_crash, crash_retries, framing, \
             open_eof_split, package_eof, package_length_type, package_length_offset, package_body_offset, \
             package_length_func, package_max_length, max_connection_per_ip, heartbeat_idle_time, max_idle_time, \
             package_max_time, max_queue, max_queue_time, busy_reply",
        ),
        ("framing=http", "framing = http: must be raw, eof, length, varint or line"),
        ("package_length_type=i", "package_length_type = i: must be one of c C s S n v l L N V q Q J P"),
        ("package_max_length=2T", "package_max_length = 2T: must be 64..=1G"),
        (r"package_eof=\x4", r"package_eof = \x4: must be 1..=8 bytes, with escapes \n \r \t \0 \xNN \\"),
        ("open_eof_split=yes", "open_eof_split = yes: must be true or false"),
        ("package_length_offset=x", "package_length_offset = x: must be 0..=65535"),
        ("max_idle_time=-1", "max_idle_time = -1: must be 0..=86400 seconds"),
    ] {
        let text = format!("unix:///a?{options}");
        assert_eq!(error(&["--listen", &text], &[]), format!("flag --listen: listen: `{text}`: {complaint}"));
    }
    assert_eq!(
        error(&["--listen=unix:///a?crash_retries=101"], &[]),
        "flag --listen: listen = unix:///a?crash_retries=101: crash_retries must be 0..=100"
    );
    assert_eq!(
        error(&["--mode=base", "--listen=unix:///a?on_crash=drop"], &[]),
        "flag --listen: listen = unix:///a?on_crash=drop: on_crash must be close in Base mode, where a worker's \
         connections go with it"
    );
}

#[test]
fn an_address_that_cannot_be_read_back_is_refused() {
    let mut config = Config::default();
    config.listen.push(Address::Unix("/run/a?b.sock".into()).into());
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "listen = unix:///run/a?b.sock: must be one that can be read back: UTF-8, and no `?` in a path"
    );
    config.listen = vec![Address::Unix("/run/a&b=c.sock".into()).into()];
    config.validate().unwrap();
}

#[test]
fn the_framing_of_an_address_must_fit_as_well() {
    for (options, complaint) in [
        (
            "framing=eof&package_eof=",
            r"package_eof = : must be 1..=8 bytes, with escapes \n \r \t \0 \xNN \\",
        ),
        ("package_max_length=63", "package_max_length = 63: must be 64..=1G"),
        ("package_body_offset=65536", "package_body_offset = 65536: must be 0..=65535"),
        (
            "framing=length&package_length_offset=200",
            "package_max_length = 100: must be at least 204, the header's size, or no packet can be accepted",
        ),
    ] {
        let listen = format!("unix:///a?{options}");
        let flags = ["--listen=unix:///fine", "--listen", &listen, "--package-max-length=100"];
        assert_eq!(error(&flags, &[]), format!("flag --listen: listen = {listen}: {complaint}"));
    }
    let general = error(&["--listen=unix:///a?package_max_length=64", "--package-max-length=1"], &[]);
    assert_eq!(general, "flag --package-max-length: package_max_length = 1: must be 64..=1G");
}

#[test]
fn limits_of_an_address_are_checked_as_well() {
    for (options, complaint) in [
        ("max_connection_per_ip=1000001", "max_connection_per_ip = 1000001: must be 0..=1000000"),
        ("package_max_time=86401", "package_max_time = 86401: must be 0..=86400 seconds"),
        ("max_queue=1000001", "max_queue = 1000001: must be 0..=1000000"),
    ] {
        let listen = format!("unix:///a?{options}");
        let told = error(&["--listen=unix:///fine", "--listen", &listen], &[]);
        assert_eq!(told, format!("flag --listen: listen = {listen}: {complaint}"));
    }
    for option in ["max_queue=1", "max_queue_time=0.5", "busy_reply=no"] {
        let listen = format!("unix:///a?{option}");
        let told = error(&["--mode=base", "--listen", &listen], &[]);
        assert!(told.contains(&option.replace('=', " = ")) && told.contains("in Base mode"), "{told}");
        load(&["--listen", &listen], &[]).unwrap();
    }
    let long = "x".repeat(4097);
    let told = error(&["--busy-reply", &long], &[]);
    assert!(
        told.starts_with("flag --busy-reply: busy_reply = 4097 bytes: must be at most 4096 bytes"),
        "{told}"
    );
}

/// Any options of an address, set or not.
fn any_listen() -> impl proptest::strategy::Strategy<Value = Listen> {
    use proptest::option::of;
    use proptest::prelude::*;
    use proptest::sample::select;
    let policy = (of(select(&OnCrash::ALL[..])), of(any::<u32>()));
    let eof = (of(select(&Framing::ALL[..])), of(any::<bool>()), of(any::<Vec<u8>>()));
    let length = (of(select(&LengthType::ALL[..])), of(any::<usize>()), of(any::<usize>()));
    let time = || of((0u64..86_400_000_000_000).prop_map(Duration::from_nanos));
    let limits =
        (of(any::<usize>()), time(), time(), time(), of(any::<usize>()), time(), of(any::<Vec<u8>>()));
    (policy, eof, length, of("[a-z_0-9=]{0,9}"), of(any::<usize>()), limits).prop_map(
        |(policy, eof, length, package_length_func, package_max_length, limits)| {
            let mut listen = Listen::from(Address::Unix("/run/a.sock".into()));
            (listen.on_crash, listen.crash_retries) = policy;
            (listen.framing, listen.open_eof_split, listen.package_eof) = eof;
            (listen.package_length_type, listen.package_length_offset, listen.package_body_offset) = length;
            (listen.package_length_func, listen.package_max_length) =
                (package_length_func, package_max_length);
            (listen.max_connection_per_ip, listen.heartbeat_idle_time, listen.max_idle_time, ..) = limits;
            (.., listen.package_max_time, listen.max_queue, listen.max_queue_time, listen.busy_reply) =
                limits;
            listen
        },
    )
}

proptest::proptest! {
    #[test]
    fn an_address_is_read_as_it_is_written(listen in any_listen()) {
        let text = listen.to_string();
        assert_eq!(text.parse::<Listen>().as_ref(), Ok(&listen), "{text}");
        let config = Config { listen: vec![listen.clone()], ..valid() };
        let read: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(read.listen, [listen]);
        // In the environment several stand in one variable.
        let both = format!("{text}, unix:///b");
        if let Ok(config) = load(&[], &[("SWOOLE_LISTEN", &both)]) {
            assert_eq!(config.listen.iter().map(Listen::to_string).collect::<Vec<_>>(), [&text, "unix:///b"]);
        }
    }
}

#[test]
fn an_address_may_be_a_table() {
    let own = r"unix:///a?framing=eof&open_eof_split=false&package_eof=\x26\x2c\x00&package_max_length=64K";
    let table = r#"address = "unix:///a"
framing = "eof"
package_max_length = "64K"
open_eof_split = false
package_eof = '&,\0'
"#;
    let listen =
        |text: &str| with_file(text, |file| load(&["--config", file], &[])).map(|config| config.listen);
    let texts = |text: &str| listen(text).unwrap().iter().map(Listen::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&format!("[listen]\n{table}")), [own]);
    let several = format!("[[listen]]\n{table}[[listen]]\naddress = 'unix:///b'\ncrash_retries = 2\n");
    assert_eq!(texts(&several), [own, "unix:///b?crash_retries=2"]);
    let inline = "listen = ['unix:///b', { address = 'unix:///c?framing=line', package_max_length = 100 }]";
    assert_eq!(texts(inline), ["unix:///b", "unix:///c?framing=line&package_max_length=100"]);
    for (text, complaint) in [
        ("[listen]\nframing = 'eof'", "a table needs an `address`"),
        ("[listen]\naddress = 'unix:///a'\nframing = 7", "`unix:///a`: framing = 7: must be raw, eof"),
        ("[listen]\naddress = 'unix:///a'\nbacklog = 7", "`unix:///a`: an address has no option `backlog`"),
        ("listen = [7]", "listen: "),
    ] {
        let error = listen(text).unwrap_err().to_string();
        assert!(error.contains(": line 1: listen: ") && error.contains(complaint), "{error}");
    }
}
