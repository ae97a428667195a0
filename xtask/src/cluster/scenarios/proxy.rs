//! Who comes by a proxy is known by the address that the proxy tells, and nobody else tells anything.

use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, full};
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full(
        "proxy_headers",
        "each kind of PROXY header, cut anywhere: the session has the address it tells",
        headers,
    ),
    full("proxy_dispatch", "dispatch by address goes by the one that is told", dispatch).in_process(),
    full("proxy_large", "a large packet in the same breath as the header, and many behind it", large),
    backends(
        "proxy_refused",
        "strangers, garbage and the late are closed and counted, and nobody else",
        refused,
    ),
    backends("proxy_crowd", "hundreds that say nothing go by themselves, and leave no room taken", crowd),
    backends("proxy_reload", "half a header is finished after a reload", reload),
    backends("proxy_stop", "a stop waits for nobody who has not said for whom it comes", stop),
];

const V2_BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn launch<'a>(cx: &'a Cx, options: &str) -> Launch<'a> {
    cx.testbed_bare()
        .flag("listen", format!("tcp://127.0.0.1:0?{options}"))
        .flag("worker-num", 2)
        .flag("reactor-num", 2)
}

const TRUSTING: &str = "proxy_protocol=any&proxy_trusted=10.0.0.0/8+127.0.0.0/8";

fn v1(source: &str) -> Result<Vec<u8>> {
    let source: SocketAddr = source.parse()?;
    let (family, ip) = if source.is_ipv4() { ("TCP4", "198.51.100.7") } else { ("TCP6", "::1") };
    Ok(format!("PROXY {family} {} {ip} {} 443\r\n", source.ip(), source.port()).into_bytes())
}

fn v2(source: &str) -> Result<Vec<u8>> {
    let source: SocketAddr = source.parse()?;
    let (family, ips) = match source.ip() {
        IpAddr::V4(ip) => (0x11, [&ip.octets()[..], &[198, 51, 100, 7]].concat()),
        IpAddr::V6(ip) => (0x21, [&ip.octets()[..], &[0; 16]].concat()),
    };
    // What nobody here asks for: the name that the client has asked for.
    let tlv = b"\x02\0\x0bexample.org";
    let block = [&ips[..], &source.port().to_be_bytes(), &443_u16.to_be_bytes(), tlv].concat();
    Ok(binary(0x21, family, &block))
}

fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    [V2_BEGIN, &[command, family], &(block.len() as u16).to_be_bytes(), block].concat()
}

/// What the server takes the client's address for.
fn peer(client: &mut Client) -> Result<String> {
    client.ask_field("session", "peer")
}

/// How many were refused so far.
fn count(client: &mut Client, name: &str) -> Result<u64> {
    let stats = client.ask("stats")?;
    let (_, rest) =
        stats.split_once(&format!("\"{name}\":")).ok_or_else(|| anyhow!("no {name} in {stats}"))?;
    Ok(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
}

fn server_port(address: &Address) -> Result<u16> {
    let Address::Tcp(address) = address else { anyhow::bail!("{address:?} is no TCP address") };
    Ok(address.port())
}

fn headers(cx: &Cx) -> Result<()> {
    let bed = launch(cx, TRUSTING).start()?;
    let port = bed.port()?;
    let headers = [
        (v1("192.0.2.1:56324")?, Some("192.0.2.1:56324")),
        (v1("[2001:db8::1]:1")?, Some("[2001:db8::1]:1")),
        (v1("[::ffff:192.0.2.9]:7")?, Some("192.0.2.9:7")),
        (v2("192.0.2.1:65535")?, Some("192.0.2.1:65535")),
        (v2("[2001:db8::2]:80")?, Some("[2001:db8::2]:80")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (binary(0x20, 0, b""), None),
    ];
    for (header, told) in &headers {
        // At once with the first packet.
        let mut client = bed.connect()?;
        client.send(&[header, &b"echo first\n"[..]].concat())?;
        client.expect_line("first")?;
        let own = format!("127.0.0.1:{}", client.port()?);
        let expected = told.unwrap_or(&own);
        ensure!(peer(&mut client)? == expected, "{expected} is taken for {}", peer(&mut client)?);
        // The header is no packet of the client's.
        let received: usize = client.ask_field("session", "recv")?;
        let asked = "echo first\n".len() + 3 * "session\n".len();
        ensure!((asked - "session\n".len()..=asked).contains(&received), "{received} bytes received");
    }
    for (header, told) in headers.iter().filter_map(|(header, told)| Some((header, (*told)?))) {
        let stream = [header, &b"echo first\n"[..]].concat();
        for cut in [1, 13, header.len() - 1, header.len() + 3] {
            let mut client = bed.connect()?;
            client.send(&stream[..cut])?;
            client.wait_read(port)?;
            client.send(&stream[cut..])?;
            client.expect_line("first").with_context(|| format!("{told}, cut after {cut} bytes"))?;
            ensure!(peer(&mut client)? == told, "{told}, cut after {cut} bytes: {}", peer(&mut client)?);
        }
    }
    // Byte by byte, and no packet but the end behind it.
    let mut client = bed.connect()?;
    for byte in &[v2("192.0.2.7:7")?, b"echo last\n".to_vec()].concat() {
        client.send(&[*byte])?;
    }
    client.finish()?;
    client.expect_line("last")?;
    client.expect_close()?;
    bed.stop()?;
    Ok(())
}

fn dispatch(cx: &Cx) -> Result<()> {
    const WORKERS: u32 = 4;
    let launch = cx.testbed_bare().flag("listen", format!("tcp://127.0.0.1:0?{TRUSTING}"));
    let bed =
        launch.flag("worker-num", WORKERS).flag("reactor-num", 2).flag("dispatch-mode", "ip_hash").start()?;
    for host in 0..2 * WORKERS {
        let source = format!("192.0.2.{host}:{}", 1000 + host);
        for header in [v1(&source)?, v2(&source)?] {
            let mut client = bed.connect()?;
            client.send(&header)?;
            let (worker, expected) = (client.worker()?, host % WORKERS);
            ensure!(worker == expected, "192.0.2.{host} went to worker {worker} instead of {expected}");
        }
    }
    bed.stop()?;
    Ok(())
}

fn large(cx: &Cx) -> Result<()> {
    let bed = launch(cx, TRUSTING).flag("ring-size", 16_384).flag("package-max-length", "1M").start()?;
    let text = "x".repeat(300_000);
    let many: String = (0..500).map(|number| format!("echo {number}\n")).collect();
    for header in [v1("192.0.2.1:1")?, v2("192.0.2.1:1")?] {
        let mut client = bed.connect()?;
        client.send(&[&header[..], b"echo ", text.as_bytes(), b"\n", many.as_bytes()].concat())?;
        client.expect_line(&text)?;
        for number in 0..500 {
            client.expect_line(&number.to_string())?;
        }
        ensure!(peer(&mut client)? == "192.0.2.1:1", "taken for {}", peer(&mut client)?);
    }
    bed.stop()?;
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    let trusting = |more: &str| format!("tcp://127.0.0.1:0?proxy_trusted=127.0.0.1&{more}");
    let bed = cx
        .testbed_bare()
        .flag("worker-num", 1)
        .flag("reactor-num", 1)
        .flag("listen", trusting("proxy_protocol=any&proxy_timeout=0.5"))
        .flag("listen", "tcp://127.0.0.1:0?proxy_protocol=any&proxy_trusted=10.0.0.0/8+::/0")
        .flag("listen", trusting("proxy_protocol=v2"))
        .flag("listen", "tcp://127.0.0.1:0")
        .start()?;
    let [any, strange, only_v2, plain] = &bed.ready.listen[..] else { anyhow::bail!("four addresses") };
    let mut bystander = Client::connect(plain)?;
    let accepted = count(&mut bystander, "accept_count")?;
    let line = [v1("192.0.2.1:1")?, b"echo lie\n".to_vec()].concat();
    let wrong_sum = binary(0x21, 0x11, &[&[1; 12][..], b"\x03\0\x04\0\0\0\0"].concat());
    let mut refusals = 0;
    let closed: [(&Address, &[u8]); 8] = [
        (strange, &line),
        (strange, b""),
        (only_v2, &line),
        (any, b"echo no header\n"),
        (any, b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 65536\r\necho lie\n"),
        (any, &wrong_sum),
        (any, &[b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat()),
        // Not all of it, and no more.
        (any, &line[..20]),
    ];
    for (address, stream) in closed {
        let mut client = Client::connect(address)?;
        // It may be closed by now.
        let _ = client.send(stream);
        client.expect_close().with_context(|| format!("{:?}", String::from_utf8_lossy(stream)))?;
        refusals += 1;
        let counted = || count(&mut bystander, "bad_proxy_count").ok().filter(|count| *count == refusals);
        proc::until(&format!("{refusals} refusals to be counted"), PATIENCE, counted)?;
    }
    // Who only looks is nobody's enemy.
    let mut gone = Client::connect(any)?;
    gone.finish()?;
    gone.expect_close()?;
    // Where no header is wanted, it is what the client says.
    let mut lie = Client::connect(plain)?;
    lie.send(&line)?;
    ensure!(lie.line()?.starts_with("error: unknown command `PROXY"), "a header where none is wanted");
    lie.expect_line("lie")?;
    ensure!(peer(&mut lie)? == format!("127.0.0.1:{}", lie.port()?), "a client's word was believed");
    let mut fine = Client::connect(any)?;
    fine.send(&line)?;
    fine.expect_line("lie")?;
    ensure!(count(&mut bystander, "bad_proxy_count")? == refusals, "somebody was refused who should not be");
    ensure!(count(&mut bystander, "accept_count")? == accepted + refusals + 3, "not everybody was counted");
    bystander.expect("echo unharmed", "unharmed")?;
    bed.log.wait_line(Source::Stderr, &["closed 127.0.0.1:", "proxy_trusted"], PATIENCE)?;
    drop((lie, fine, gone));
    bed.stop()?;
    Ok(())
}

fn crowd(cx: &Cx) -> Result<()> {
    const CROWD: usize = 300;
    let bed = launch(cx, &format!("{TRUSTING}&proxy_timeout=1")).flag("max-connection", 2 * CROWD).start()?;
    let mut client = bed.connect()?;
    client.send(&v1("192.0.2.1:1")?)?;
    client.expect("echo here", "here")?;
    for round in 1..=3 {
        let silent = (0..CROWD).map(|_| Client::connect_small(bed.address()?)).collect::<Result<Vec<_>>>()?;
        let wanted = (round * CROWD) as u64;
        let counted = || count(&mut client, "bad_proxy_count").ok().filter(|count| *count == wanted);
        proc::until("all of the silent to be refused", PATIENCE, counted)?;
        drop(silent);
    }
    let alone = || count(&mut client, "connection_num").ok().filter(|count| *count == 1);
    proc::until("their places to be free", PATIENCE, alone)?;
    client.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    Ok(())
}

fn reload(cx: &Cx) -> Result<()> {
    // Far longer than this takes.
    let bed = launch(cx, &format!("{TRUSTING}&proxy_timeout=600")).start()?;
    let port = server_port(bed.address()?)?;
    let mut clients = Vec::new();
    for header in [v1("192.0.2.1:1")?, v2("192.0.2.1:1")?] {
        for cut in [0, 1, 14, header.len() - 1, header.len(), header.len() + 3] {
            let mut client = bed.connect()?;
            let stream = [&header[..], b"echo first\n"].concat();
            client.send(&stream[..cut])?;
            client.wait_read(port)?;
            clients.push((client, stream, cut));
        }
    }
    for round in 1..=2 {
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", round, PATIENCE)?;
    }
    for (client, stream, cut) in &mut clients {
        client.send(&stream[*cut..])?;
        let place = || format!("reloaded after {cut} bytes");
        client.expect_line("first").with_context(place)?;
        ensure!(peer(client)? == "192.0.2.1:1", "{}: taken for {}", place(), peer(client)?);
    }
    let [(client, ..), ..] = &mut clients[..] else { anyhow::bail!("no clients") };
    ensure!(count(client, "bad_proxy_count")? == 0, "somebody was refused");
    let connected = count(client, "connection_num")?;
    ensure!(connected == clients.len() as u64, "{connected} connections of {}", clients.len());
    bed.stop()?;
    Ok(())
}

fn stop(cx: &Cx) -> Result<()> {
    let bed = launch(cx, &format!("{TRUSTING}&proxy_timeout=600")).flag("max-wait-time", 10).start()?;
    let port = server_port(bed.address()?)?;
    let mut silent = half_said(&bed, port)?;
    let took = bed.stop()?;
    ensure!(took < Duration::from_secs(8), "the stop took {took:?}, for those who had said nothing");
    silent.iter_mut().try_for_each(Client::expect_close)
}

/// Clients of whom a part of a header has been read.
fn half_said(bed: &Bed, port: u16) -> Result<Vec<Client>> {
    let half = |_| {
        let mut client = bed.connect()?;
        client.send(b"PROXY TCP4 192.")?;
        client.wait_read(port)?;
        Ok(client)
    };
    (0..5).map(half).collect()
}
