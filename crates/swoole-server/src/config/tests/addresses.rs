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
            "on_crash=drop&worker_num=7",
            "an address has no option `worker_num`, only on_crash, crash_retries, framing, \
             open_eof_split, package_eof, package_length_type, package_length_offset, package_body_offset, \
             package_length_func, package_max_length, enable_delay_receive, max_connection_per_ip, \
             heartbeat_idle_time, max_idle_time, package_max_time, max_queue, max_queue_time, busy_reply, \
             ssl_cert_file, ssl_key_file, ssl_client_cert_file, ssl_verify_peer, ssl_protocols, ssl_ciphers, ssl_alpn, \
             ssl_stapling_file, ssl_sni_certs, backlog, open_tcp_nodelay, open_tcp_keepalive, \
             tcp_keepidle, tcp_keepinterval, tcp_keepcount, tcp_defer_accept, tcp_fastopen, tcp_user_timeout, \
             ipv6_only, reuse_port, unix_mode, unix_user, unix_group, proxy_protocol, proxy_trusted, \
             proxy_timeout, name",
        ),
        ("framing=http", "framing = http: must be raw, eof, length, varint or line"),
        ("package_length_type=i", "package_length_type = i: must be one of c C s S n v l L N V q Q J P"),
        ("package_max_length=2T", "package_max_length = 2T: must be 64..=1G"),
        (r"package_eof=\x4", r"package_eof = \x4: must be 1..=8 bytes, with escapes \n \r \t \0 \xNN \\"),
        ("open_eof_split=yes", "open_eof_split = yes: must be true or false"),
        ("name=a+b", "name = a+b: must be 1..=32 ASCII letters, digits, `-`, `_` and `.`"),
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
    let socket =
        (of(any::<u32>()), of(any::<bool>()), of(any::<u32>()), of(0..=0o777_u32), of("[a-z0-9]{0,9}"));
    let networks = select(&["10.0.0.0/8", "::/0", "192.0.2.1", "2001:db8::/32"][..]);
    let networks = proptest::collection::vec(networks.prop_map(|text| text.parse().unwrap()), 1..4);
    let proxy = (of(select(&ProxyProtocol::ALL[..])), of(networks), of(any::<u32>()));
    let own = (socket, proxy, limits);
    (policy, eof, length, of("[a-z_0-9=]{0,9}"), of(any::<usize>()), own).prop_map(
        |(policy, eof, length, package_length_func, package_max_length, (socket, proxy, limits))| {
            let mut listen = Listen::from(Address::Unix("/run/a.sock".into()));
            (listen.on_crash, listen.crash_retries) = policy;
            (listen.framing, listen.open_eof_split, listen.package_eof) = eof;
            (listen.package_length_type, listen.package_length_offset, listen.package_body_offset) = length;
            (listen.package_length_func, listen.package_max_length) =
                (package_length_func, package_max_length);
            (listen.max_connection_per_ip, listen.heartbeat_idle_time, listen.max_idle_time, ..) = limits;
            (.., listen.package_max_time, listen.max_queue, listen.max_queue_time, listen.busy_reply) =
                limits;
            let SocketOptions { backlog, reuse_port, tcp_keepidle, unix_mode, unix_group, .. } =
                &mut listen.socket;
            (*backlog, *reuse_port, *tcp_keepidle, *unix_mode, *unix_group) = socket;
            (listen.proxy.proxy_protocol, listen.proxy.proxy_trusted) = (proxy.0, proxy.1);
            listen.name = listen.socket.reuse_port.map(|on| format!("name-{on}"));
            listen.proxy.proxy_timeout = proxy.2.map(|millis| Duration::from_millis(millis.into()));
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
        (
            "[listen]\naddress = 'unix:///a'\nworker_num = 7",
            "`unix:///a`: an address has no option `worker_num`",
        ),
        (
            "[listen]\naddress = 'unix:///a'\nunix_mode = 660",
            "unix_mode = 660, no text: must be octal digits",
        ),
        ("listen = [7]", "listen: "),
    ] {
        let error = listen(text).unwrap_err().to_string();
        assert!(error.contains(": line 1: listen: ") && error.contains(complaint), "{error}");
    }
}

#[test]
fn an_option_of_a_socket_is_for_sockets_of_its_kind() {
    let refused = |listen: &str, complaint: &str| {
        assert_eq!(
            error(&["--listen", listen], &[]),
            format!("flag --listen: listen = {listen}: {complaint}")
        );
    };
    refused("unix:///a?tcp_fastopen=5", "tcp_fastopen = 5: is for TCP");
    refused("unix:///a?reuse_port=true", "reuse_port = true: is for TCP");
    refused("tcp://127.0.0.1:0?unix_mode=660", "unix_mode = 660: is for a unix socket");
    let only = "ipv6_only = false: is for an IPv6 address, as tcp://[::]:9501";
    refused("tcp://127.0.0.1:0?ipv6_only=false", only);
    let opened = "backlog = 9: is up to whoever has opened the socket that is inherited";
    refused("fd://web?backlog=9", opened);
    refused("unix:///a?backlog=0", "backlog = 0: must be 1..=65535");
    refused("tcp://[::]:0?tcp_keepidle=40000", "tcp_keepidle = 40000: must be 1..=32767");
    refused("unix:///a?unix_mode=1777", "unix_mode = 1777: must be octal digits as text, 0..=777");
    for fine in [
        "tcp://[::]:0?open_tcp_keepalive=true&tcp_keepcount=2&tcp_user_timeout=1000&ipv6_only=false",
        "unix:///a?backlog=9&unix_mode=660&unix_user=nobody&unix_group=1000",
        "fd://web?framing=line&open_tcp_nodelay=false&tcp_defer_accept=1",
    ] {
        let config = load(&["--listen", fine], &[]).unwrap();
        assert_eq!(config.listen[0].to_string(), fine);
    }
    let general = load(&["--listen=unix:///a", "--unix-mode=0o600", "--tcp-keepidle=60"], &[]).unwrap();
    assert_eq!((general.unix_mode, general.tcp_keepidle), (Some(0o600), 60));
    assert_eq!(
        error(&["--unix-mode=8"], &[]),
        "flag --unix-mode: unix_mode = 8: must be octal digits as text, 0..=777"
    );
}

#[test]
fn a_proxy_has_to_be_trusted_by_somebody() {
    let needs = "needs proxy_trusted, the networks of the proxies: whoever connects could say that it is somebody else \
                 (0.0.0.0/0 and ::/0 are everybody)";
    assert_eq!(
        error(&["--proxy-protocol=any"], &[]),
        format!("flag --proxy-protocol: proxy_protocol = any: {needs}")
    );
    let listen = "tcp://127.0.0.1:0?proxy_protocol=v2";
    assert_eq!(
        error(&["--listen", listen], &[]),
        format!("flag --listen: listen = {listen}: proxy_protocol = v2: {needs}")
    );
    for (networks, complaint) in [("10.0.0.1/8", "10.0.0.1/8"), ("10.0.0.0/8+x", "10.0.0.0/8+x"), ("", "")] {
        let listen = format!("{listen}&proxy_trusted={networks}");
        assert_eq!(
            error(&["--listen", &listen], &[]),
            format!(
                "flag --listen: listen: `{listen}`: proxy_trusted = {complaint}: must be networks, as 10.0.0.0/8, \
                 2001:db8::/32 or 192.0.2.1"
            )
        );
    }
    let late = "unix:///a?proxy_protocol=v1&proxy_timeout=0.01";
    assert_eq!(
        error(&["--listen", late], &[]),
        format!("flag --listen: listen = {late}: proxy_timeout = 0.01: must be 0.1..=3600 seconds")
    );
    // The file's mode says who may connect.
    load(&["--listen=unix:///a?proxy_protocol=v1"], &[]).unwrap();
    let flags =
        ["--listen=tcp://[::]:0?proxy_protocol=v2", "--proxy-trusted=10.0.0.0/8", "--proxy-trusted", "::1"];
    let flagged = load(&flags, &[]).unwrap();
    let rule = flagged.proxy_rule(&flagged.listen[0]).unwrap();
    assert_eq!((rule.protocol, rule.timeout), (ProxyProtocol::V2, Duration::from_secs(5)));
    let trusts = |peer: &str| rule.trusts(Some(peer.parse().unwrap()));
    assert!(trusts("10.1.2.3") && trusts("::1") && !trusts("127.0.0.1") && rule.trusts(None));
    let env = [("SWOOLE_LISTEN", listen), ("SWOOLE_PROXY_TRUSTED", "10.0.0.0/8, ::1")];
    assert_eq!(load(&[], &env).unwrap().proxy_trusted, flagged.proxy_trusted);
    let file = "proxy_trusted = ['10.0.0.0/8', '::1']\n[listen]\naddress = 'tcp://[::]:0'\nproxy_protocol = 'any'\n\
                proxy_timeout = 2\n";
    let config = with_file(file, |file| load(&["--config", file], &[])).unwrap();
    assert_eq!(config.proxy_trusted, flagged.proxy_trusted);
    assert_eq!(config.listen[0].proxy.proxy_timeout, Some(Duration::from_secs(2)));
    let own = "proxy_trusted = []\n[listen]\naddress = 'tcp://[::]:0'\nproxy_protocol = 'any'\n\
               proxy_trusted = ['10.0.0.0/8', '::1']\n";
    let config = with_file(own, |file| load(&["--config", file], &[])).unwrap();
    assert_eq!(config.listen[0].to_string(), "tcp://[::]:0?proxy_protocol=any&proxy_trusted=10.0.0.0/8+::1");
}

#[test]
fn who_is_confirmed_later_has_said_nothing_before() {
    let flags = ["--listen=tcp://[::1]:0?proxy_protocol=v2&enable_delay_receive=true", "--proxy-trusted=::1"];
    let refused = error(&flags, &[]);
    assert!(
        refused.contains("enable_delay_receive = true: must be false where clients speak TLS"),
        "{refused}"
    );
    load(&["--listen=tcp://[::1]:0?enable_delay_receive=true"], &[]).unwrap();
}
