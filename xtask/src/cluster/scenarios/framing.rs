//! Each address has a framing of its own, with its own limit.

use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, full, once};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

pub(super) static ALL: &[Scenario] = &[
    backends(
        "framings_side_by_side",
        "one server with a listener of each framing: packets are whole, wherever they are cut",
        side_by_side,
    ),
    full("framing_large", "packets of each framing that are larger than a ring, one after the other", large),
    full(
        "framing_limits",
        "each listener's own limit, and nobody else's, costs its sender the connection",
        limits,
    ),
    backends(
        "framing_garbage",
        "what is no packet, and a panic of a length function, cost their sender the connection only",
        garbage,
    ),
    backends("framing_reload", "half packets of each framing are finished after a reload", reload),
    backends(
        "framing_eof",
        "a delimiter ends a packet wherever it stands, or only at the end of what came",
        eof,
    ),
    once("framing_refused", "a framing that cannot be is refused, with the address it is set for", refused),
];

/// A listener, by its options, and what its clients say to it and hear from it.
struct Port {
    options: &'static str,
    stream: &'static [u8],
    reply: &'static [u8],
}

const RAW: usize = 0;
const FUNC: usize = 3;
const PORTS: [Port; 6] = [
    Port { options: "framing=raw", stream: b"any\0\n", reply: b"any\0\n" },
    Port { options: "framing=eof", stream: b"echo one\necho two\n", reply: b"one\ntwo\n" },
    Port {
        options: "framing=length&package_length_type=n&package_length_offset=1&package_body_offset=3",
        stream: b"#\0\x03abc#\0\0",
        reply: b"#\0\x03abc#\0\0",
    },
    Port {
        options: "framing=length&package_length_func=hex4",
        stream: b"0003abc00000001\n",
        reply: b"0003abc00000001\n",
    },
    Port { options: "framing=varint", stream: b"\x03abc\0\x83\x80\0\r\n\0", reply: b"\x03abc\0\x03\r\n\0" },
    Port { options: "framing=line", stream: b"echo one\r\necho two\n", reply: b"one\ntwo\n" },
];

impl Port {
    /// A packet of so many bytes in total and its reply, where there are such.
    fn packet(&self, len: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let body = |header: &[u8]| [header, &vec![b'x'; len - header.len()]].concat();
        let echoed = |packet: Vec<u8>| Some((packet.clone(), packet));
        let line = |end: &str| {
            let text = "x".repeat(len - "echo ".len() - end.len());
            Some((format!("echo {text}{end}").into_bytes(), format!("{text}\n").into_bytes()))
        };
        match self.options {
            "framing=eof" => line("\n"),
            "framing=line" => line("\r\n"),
            "framing=varint" => {
                let mut prefix = Vec::new();
                let mut rest = len - if len > 16_386 { 3 } else { 1 + usize::from(len > 128) };
                while rest > 127 {
                    prefix.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                prefix.push(rest as u8);
                echoed(body(&prefix))
            }
            options if options.contains("hex4") => echoed(body(format!("{:04x}", len - 4).as_bytes())),
            options if options.contains("framing=length") => {
                let [high, low] = u16::try_from(len - 3).ok()?.to_be_bytes();
                echoed(body(&[b'#', high, low]))
            }
            _ => None,
        }
    }
}

/// The testbed with all these ports.
fn launch<'a>(cx: &'a Cx, more: &str) -> Launch<'a> {
    let launch = cx.testbed_bare().flag("worker-num", 2).flag("reactor-num", 2);
    PORTS.iter().fold(launch, |launch, port| {
        launch.flag("listen", format!("tcp://127.0.0.1:0?{}{more}", port.options))
    })
}

/// A client of each port, with the port's number at the server.
fn connect(bed: &Bed) -> Result<Vec<(Client, u16)>> {
    let connect = |address: &Address| {
        let Address::Tcp(socket) = address else { anyhow::bail!("{address:?} is no TCP address") };
        Ok((Client::connect(address)?, socket.port()))
    };
    ensure!(bed.ready.listen.len() == PORTS.len(), "listens on {:?}", bed.ready.listen);
    bed.ready.listen.iter().map(connect).collect()
}

/// Every client still gets what its port promises.
fn serve_all(clients: &mut [(Client, u16)]) -> Result<()> {
    for ((client, _), port) in clients.iter_mut().zip(&PORTS) {
        client.send(port.stream)?;
        let reply = client.exactly(port.reply.len()).with_context(|| port.options)?;
        ensure!(reply == port.reply, "{}: got {reply:?}", port.options);
    }
    Ok(())
}

fn side_by_side(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "").start()?;
    let mut clients = connect(&bed)?;
    serve_all(&mut clients)?;
    for cut in 1..PORTS.iter().map(|port| port.stream.len()).max().unwrap_or(0) {
        // All of them are in the middle of something at once.
        for ((client, number), port) in clients.iter_mut().zip(&PORTS) {
            client.send(&port.stream[..cut.min(port.stream.len())])?;
            client.wait_read(*number)?;
        }
        for ((client, _), port) in clients.iter_mut().zip(&PORTS) {
            client.send(&port.stream[cut.min(port.stream.len())..])?;
            let place = || format!("{}, cut after {cut} bytes", port.options);
            let reply = client.exactly(port.reply.len()).with_context(place)?;
            ensure!(reply == port.reply, "{}: got {reply:?}", place());
        }
    }
    bed.stop()?;
    Ok(())
}

fn large(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "").flag("ring-size", 16_384).start()?;
    let mut clients = connect(&bed)?;
    for ((client, number), port) in clients.iter_mut().zip(&PORTS) {
        // Not all of the same size: what is known of one must not be believed of the next.
        for len in [60_000, 30_000, 50, 65_000] {
            let Some((packet, reply)) = port.packet(len) else { continue };
            let place = || format!("{}, {len} bytes", port.options);
            client.send(&packet[..20])?;
            client.wait_read(*number)?;
            client.send(&packet[20..])?;
            ensure!(client.exactly(reply.len()).with_context(place)? == reply, "{}: otherwise", place());
        }
    }
    serve_all(&mut clients)?;
    bed.stop()?;
    Ok(())
}

fn limits(cx: &Cx) -> Result<()> {
    const OWN: usize = 100;
    // Of the raw stream a limit says how it is cut, and costs nobody anything.
    let bed = launch(cx, &format!("&package_max_length={OWN}"))
        .flag("listen", "tcp://127.0.0.1:0?framing=line")
        .flag("package-max-length", 1000)
        .start();
    let mut bed = bed?;
    let general = bed.ready.listen.pop().context("the last address")?;
    let mut bystanders = connect(&bed)?;
    let mut other = Client::connect(&general)?;
    for port in PORTS.iter().skip(1 + RAW) {
        let place = || port.options;
        let index = PORTS.iter().position(|other| other.options == port.options).unwrap_or(RAW);
        let mut client = Client::connect(&bed.ready.listen[index])?;
        let (packet, reply) = port.packet(OWN).context("a packet of that size")?;
        client.send(&packet)?;
        ensure!(client.exactly(reply.len()).with_context(place)? == reply, "{}: otherwise", place());
        let (packet, _) = port.packet(OWN + 1).context("a packet of that size")?;
        client.send(&packet)?;
        client.expect_close().with_context(place)?;
        // The server's own is ten times that.
        let text = "y".repeat(994);
        other.expect(&format!("echo {text}"), &text)?;
    }
    other.send("z".repeat(1001).as_bytes())?;
    other.expect_close()?;
    let long = vec![b'r'; 10 * OWN];
    bystanders[RAW].0.send(&long)?;
    ensure!(bystanders[RAW].0.exactly(long.len())? == long, "the raw stream came back otherwise");
    serve_all(&mut bystanders)?;
    bed.stop()?;
    Ok(())
}

fn garbage(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "&package_max_length=64").start()?;
    let mut bystanders = connect(&bed)?;
    serve_all(&mut bystanders)?;
    let workers = bed.lives();
    let offences: [(&str, &[&[u8]]); 5] = [
        ("framing=eof", &[&[b'a'; 64]]),
        ("framing=length&package_length_type", &[b"#\xff\xff", b"#\0\x3e"]),
        ("framing=length&package_length_func", &[b"xyz", b"12", b"ffff", b"!", b"!!!!"]),
        ("framing=varint", &[&[0x80; 10], &[0xff; 64], b"\x40"]),
        ("framing=line", &[&[b'\r'; 64], b"echo \0\xff"]),
    ];
    for (options, streams) in offences {
        let index = PORTS.iter().position(|port| port.options.starts_with(options)).context(options)?;
        for stream in streams {
            let mut client = Client::connect(&bed.ready.listen[index])?;
            let place = || format!("{options}: {stream:?}");
            // It makes sense at first.
            client.send(PORTS[index].stream)?;
            client.exactly(PORTS[index].reply.len()).with_context(place)?;
            client.send(stream)?;
            // Of what could still become a packet there is nothing to complain about.
            if [&b"12"[..], b"echo \0\xff"].contains(stream) {
                client.finish()?;
            }
            client.expect_close().with_context(place)?;
            serve_all(&mut bystanders).with_context(|| format!("beside {}", place()))?;
        }
    }
    for what in ["package_length_func panicked", "four hexadecimal digits", "more than 64 bits"] {
        bed.log.wait_line(Source::Stderr, &["what it sends is no packet", what], PATIENCE)?;
    }
    let mut late = Client::connect(&bed.ready.listen[FUNC])?;
    late.send(PORTS[FUNC].stream)?;
    ensure!(late.exactly(PORTS[FUNC].reply.len())? == PORTS[FUNC].reply, "after the panics");
    ensure!(bed.lives() == workers, "a worker was replaced: {:?}, before {workers:?}", bed.lives());
    bed.stop()?;
    Ok(())
}

fn reload(cx: &Cx) -> Result<()> {
    let bed = launch(cx, "").start()?;
    let mut clients = connect(&bed)?;
    for (round, cut) in [2, 6].into_iter().enumerate() {
        for ((client, number), port) in clients.iter_mut().zip(&PORTS).skip(1 + RAW) {
            client.send(&port.stream[..cut])?;
            client.wait_read(*number)?;
        }
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", round + 1, PATIENCE)?;
        for ((client, _), port) in clients.iter_mut().zip(&PORTS).skip(1 + RAW) {
            client.send(&port.stream[cut..])?;
            let place = || format!("{}, reloaded after {cut} bytes", port.options);
            let reply = client.exactly(port.reply.len()).with_context(place)?;
            ensure!(reply == port.reply, "{}: got {reply:?}", place());
        }
        serve_all(&mut clients)?;
    }
    bed.stop()?;
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    let launch = || cx.testbed_bare();
    launch().flag("listen", "tcp://127.0.0.1:0?framing=length&package_length_func=hex5").refused(&[
        "tcp://127.0.0.1:0?framing=length",
        "package_length_func = hex5",
        "hex4",
    ])?;
    launch()
        .flag("listen", "tcp://127.0.0.1:0?framing=length&package_length_offset=62&package_max_length=64")
        .refused(&["tcp://127.0.0.1:0?framing=length", "package_max_length = 64", "at least 66"])?;
    launch()
        .flag("listen", "tcp://127.0.0.1:0?package_size=64")
        .refused(&["tcp://127.0.0.1:0?package_size=64", "no option `package_size`"])
}

fn eof(cx: &Cx) -> Result<()> {
    for (split, reply) in [(true, "one||two||"), (false, "one||echo two||")] {
        let launch = cx.testbed().flag("package-eof", "||");
        let bed = launch.word(&format!("--open-eof-split={split}")).start()?;
        let mut client = bed.connect()?;
        // One write, which the server reads at once.
        client.send(b"echo one||echo two||")?;
        let got = client.exactly(reply.len())?;
        ensure!(got == reply.as_bytes(), "open_eof_split = {split}: {:?}", String::from_utf8_lossy(&got));
        bed.stop()?;
    }
    Ok(())
}
