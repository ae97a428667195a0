//! The other examples do what their source promises.

use crate::cluster::bed::{PATIENCE, Process};
use crate::cluster::client::{Address, Client};
use crate::cluster::datagram::Sender;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, once};
use crate::{cluster::proc, shell};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::Command;

// Alone where the program's own port is taken, as its reader would.
pub(super) static ALL: &[Scenario] = &[
    once("lifecycle", "what each role sees of the others' state across the forks", lifecycle).in_process(),
    backends("reactor_echo", "an echo server on the bare reactor", reactor_echo).in_process(),
    once("channels", "parent and child talk over each kind of channel", channels).in_process(),
    once(
        "channels_memcheck",
        "valgrind finds nothing in either of them: no byte that nobody has written",
        channels_memcheck,
    )
    .in_process(),
    once("supervise", "plain functions are restarted, reloaded and stopped", supervise).in_process(),
    once("frames", "cuts what stands on its input into packets", frames).in_process(),
    once("tasks_example", "task workers make thumbnails, also when they are killed", tasks).in_process(),
    once("chat_example", "people meet in rooms, where the deaths of workers leave them", chat).in_process(),
    once(
        "user_process_example",
        "a collector writes down what the server does, also when it was killed",
        collector,
    )
    .in_process(),
    once("multi_port", "the same service on three ports, framed in three ways", multi_port)
        .in_process()
        .alone(),
    once("proxy_example", "who comes by a proxy is told from where, also by curl", proxy).in_process(),
    once("udp", "tells the time by UDP and by a unix socket, and who has asked how often", udp),
    once(
        "table",
        "workers count a client's requests together, and go on counting when one was killed",
        table,
    )
    .in_process()
    .alone(),
    once("echo", "the smallest server: under 25 lines, and it serves", echo).in_process().alone(),
];

const LIFECYCLE: &str = r#"
on_start base="set before start"
on_manager_start base="set before start" master_to_manager=""
on_worker_start base="set before start" master_to_manager="" manager_to_worker=""
on_worker_stop base="set before start" master_to_manager="changed by worker" manager_to_worker="changed by worker"
on_worker_start base="changed by manager" master_to_manager="changed by manager" manager_to_worker="from manager"
on_worker_stop base="changed by manager" master_to_manager="changed by worker" manager_to_worker="changed by worker"
on_manager_stop base="changed by manager" master_to_manager="changed by manager" manager_to_worker="from manager"
on_shutdown base="changed by master" master_to_manager="from master" manager_to_worker=""
"#;

fn lifecycle(cx: &Cx) -> Result<()> {
    let mut server = cx.example("lifecycle").spawn()?;
    server.log.wait_count("on_worker_start", 1, PATIENCE)?;
    proc::signal(server.pid(), Signal::USR1)?;
    server.log.wait_count("on_worker_start", 2, PATIENCE)?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    server.log.wait_end(PATIENCE)?;
    let lines = server.log.texts(Source::Stdout);
    let expected: Vec<&str> = LIFECYCLE.trim().lines().collect();
    ensure!(lines == expected, "expected\n{}\ngot\n{}", expected.join("\n"), lines.join("\n"));
    Ok(())
}

/// Bytes of a PPM file, with its length before it: it is grey, from black on the left to white on the right.
fn picture(width: usize, height: usize) -> Vec<u8> {
    let mut file = format!("P6\n# grey\n{width} {height}\n255\n").into_bytes();
    let row = (0..width).flat_map(|x| [(x * 255 / (width - 1)) as u8; 3]);
    file.extend(row.cycle().take(width * height * 3));
    [&(file.len() as u32).to_be_bytes()[..], &file].concat()
}

/// Reads a thumbnail of such a picture, of so many pixels.
fn expect_thumbnail(client: &mut Client, strips: usize, size: (usize, usize)) -> Result<()> {
    client.expect_line("P6")?;
    expect_strips(client, strips, size)
}

fn expect_strips(client: &mut Client, strips: usize, (width, height): (usize, usize)) -> Result<()> {
    for strip in 1..=strips {
        client.expect_line(&format!("# {strip} of {strips}"))?;
    }
    client.expect_line(&format!("{width} {height}"))?;
    client.expect_line("255")?;
    let pixels = client.exactly(width * height * 3)?;
    for (index, pixel) in pixels.chunks(3).enumerate() {
        let (x, grey) = (index % width, i32::from(pixel[0]));
        let wanted = (x as i32 * 2 + 1) * 255 / (width as i32 * 2);
        ensure!(
            (grey - wanted).abs() <= 2 && pixel == [pixel[0]; 3],
            "pixel {index}: {pixel:?}, not {wanted}"
        );
    }
    client.expect_close()
}

fn tasks(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("tasks.sock");
    let launch = cx.example("tasks").flag("worker-num", 1).flag("task-tmpdir", cx.dir.display());
    let mut server = launch.flag("listen", format!("unix://{}", path.display())).spawn()?;
    let address = Address::Unix(path);
    let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
    client.send(b"\0\0\0\x05photo")?;
    client.expect_line("a PPM file begins with P6")?;
    client.expect_close()?;
    for (width, height, strips, of) in [(1600, 1200, 8, (160, 120)), (160, 3, 3, (160, 3))] {
        let mut client = Client::connect(&address)?;
        client.send(&picture(width, height))?;
        expect_thumbnail(&mut client, strips, of)?;
    }
    let mut client = Client::connect(&address)?;
    // Work for some time, so that they are at it.
    client.send(&picture(3200, 2400))?;
    client.expect_line("P6")?;
    let is_task_worker = |pid: &i32| proc::title(*pid).starts_with("swoole: task worker");
    for pid in proc::descendants(server.pid()).into_iter().filter(is_task_worker) {
        proc::signal(pid, Signal::KILL)?;
    }
    expect_strips(&mut client, 8, (160, 120))?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn chat(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("chat.sock");
    let mut server = cx.example("chat").flag("listen", format!("unix://{}", path.display())).spawn()?;
    let address = Address::Unix(path);
    let enter = |name: &str| -> Result<Client> {
        let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
        let line = client.line()?;
        ensure!(line.starts_with("* welcome"), "{line:?}");
        client.expect(&format!("/nick {name}"), &format!("* you are {name}"))?;
        Ok(client)
    };
    let (mut ann, mut bob, mut eve) = (enter("ann")?, enter("bob")?, enter("eve")?);
    ann.expect("hello?", "! join a room first: /join ROOM")?;
    ann.expect("/join cats", "* you have joined cats")?;
    bob.expect("/join cats", "* you have joined cats")?;
    ann.expect_line("* bob has joined cats")?;
    eve.expect("/who", "* ann, bob, eve")?;
    eve.expect("/join two words", "! a name is one word")?;
    let is_worker = |pid: &i32| proc::title(*pid).starts_with("swoole: worker");
    for pid in proc::descendants(server.pid()).into_iter().filter(is_worker) {
        proc::signal(pid, Signal::KILL)?;
    }
    ann.tell("meow")?;
    bob.expect_line("ann: meow")?;
    eve.tell("/all good night")?;
    ann.expect_line("eve to all: good night")?;
    bob.expect_line("eve to all: good night")?;
    bob.tell("/quit")?;
    bob.expect_close()?;
    ann.expect_line("* bob has left")?;
    ann.expect("/part cats", "* you have left cats")?;
    ann.expect("/dance", "! there is no /dance")?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn udp(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("time.sock");
    // Nobody has this port for datagrams, and a socket that is closed again has held it against others until now.
    let address = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let launch = cx.example("udp").flag("mode", cx.setup.mode).flag("worker-num", 2);
    let launch = launch.flag("listen", format!("udp://{address}"));
    let mut server = launch.flag("listen", format!("unixgram://{}", path.display())).spawn()?;
    server.log.wait_line(Source::Stderr, &["Server is ready"], PATIENCE)?;
    let sender = Sender::udp(&address)?;
    let first = sender.ask("what time is it?")?;
    ensure!(first.contains(", and it is the first time that 127.0.0.1 asks worker "), "{first:?}");
    for times in 2..5 {
        let answer = sender.ask("and now?")?;
        ensure!(answer.ends_with(&format!(" {times} times\n")), "{answer:?}");
    }
    let own = cx.dir.join("asker.sock");
    let answer = Sender::unix(&path, Some(&own))?.ask("")?;
    ensure!(answer.contains(", says worker "), "{answer:?}");
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn multi_port(cx: &Cx) -> Result<()> {
    // A handler waits for an address that a reload brings.
    let file = cx.dir.join("ports.toml");
    let [lines, more] =
        ["tcp://127.0.0.1:0?framing=line&name=programs", "tcp://127.0.0.1:0?framing=raw&name=netstrings"];
    fs::write(&file, format!("listen = {:?}\n", [lines]))?;
    let mut server = cx.example("multi_port").flag("config", file.display()).spawn()?;
    server.log.wait_line(Source::Stderr, &["no address has the name netstrings", "yet"], PATIENCE)?;
    server.log.wait_line(Source::Stderr, &["Server is ready on"], PATIENCE)?;
    fs::write(&file, format!("listen = {:?}\n", [lines, more]))?;
    proc::signal(server.pid(), Signal::USR1)?;
    server.log.wait_line(Source::Stderr, &["Server is ready on", ", too"], PATIENCE)?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    let mut server = cx.example("multi_port").flag("worker-num", 1).spawn()?;
    let talks: [(u16, &[u8], &[u8]); 3] = [
        (9504, b"world\r\nyou\n", b"hello, world\nhello, you\n"),
        (9505, b"\x05world\x03you", b"\x0chello, world\x0ahello, you"),
        (9506, b"5:world,3:you,", b"12:hello, world,10:hello, you,"),
    ];
    for (port, stream, reply) in talks {
        let address = Address::Tcp(([127, 0, 0, 1], port).into());
        let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
        client.send(stream)?;
        ensure!(client.exactly(reply.len())? == reply, "port {port} replies otherwise");
    }
    let mut long = Client::connect(&Address::Tcp("127.0.0.1:9504".parse()?))?;
    long.send(&[b'x'; 1024])?;
    long.expect_close()?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn proxy(cx: &Cx) -> Result<()> {
    let mut server = cx.example("proxy_protocol").flag("worker-num", 1).spawn()?;
    let address = Address::Tcp("127.0.0.1:9507".parse()?);
    let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
    client.send(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 80\r\nGET / HTTP/1.0\r\n\r\n")?;
    let reply = String::from_utf8(client.drain(PATIENCE)?)?;
    ensure!(reply.ends_with("\r\n\r\nyou are 192.0.2.1:56324\n"), "got {reply:?}");
    // A real one, where there is one.
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--haproxy-protocol"]);
    match curl.arg("http://127.0.0.1:9507/").output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success() && text.starts_with("you are 127.0.0.1:"), "curl: {output:?}");
        }
        Err(error) => ensure!(error.kind() == std::io::ErrorKind::NotFound, "start curl: {error}"),
    }
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn echo(cx: &Cx) -> Result<()> {
    let source = fs::read_to_string(shell::root().join("examples/echo.rs"))?;
    let lines =
        source.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//")).count();
    ensure!((5..25).contains(&lines), "examples/echo.rs has {lines} lines");
    let address = "127.0.0.1:9501";
    ensure!(source.contains(address), "examples/echo.rs does not listen on {address}");
    let mut server = cx.example("echo").spawn()?;
    let address = Address::Tcp(address.parse()?);
    let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
    client.expect("hello", "hello").context("the example's echo")?;
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn table(cx: &Cx) -> Result<()> {
    let mut server = cx.example("table").spawn()?;
    let address = Address::Tcp("127.0.0.1:9503".parse()?);
    // They have different workers, and one address.
    let mut clients =
        vec![proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?];
    for _ in 1..4 {
        clients.push(Client::connect(&address)?);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        client.expect("hello", &format!("request {} of 5", index + 1)).context("the example's count")?;
    }
    let workers = || {
        let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let family = proc::children(server.pid()).into_iter().flat_map(proc::children);
        family.filter(|pid| title(pid).starts_with("swoole: worker")).collect::<Vec<i32>>()
    };
    let first = workers();
    ensure!(first.len() == 4, "there are {} workers", first.len());
    first.iter().try_for_each(|&pid| proc::signal(pid, Signal::KILL))?;
    proc::until("other workers", PATIENCE, || {
        let now = workers();
        (now.len() == 4 && now.iter().all(|pid| !first.contains(pid))).then_some(())
    })?;
    clients[3].expect("hello", "request 5 of 5").context("the count after a death")?;
    for client in &mut clients {
        client.expect("hello", "refused: too many requests")?;
    }
    proc::signal(server.pid(), Signal::TERM)?;
    let status = server.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

fn frames(cx: &Cx) -> Result<()> {
    let feed = |input: &str, words: &[&str]| -> Result<Vec<String>> {
        let script = format!("printf '{input}' | \"$0\" \"$@\"");
        let launch = words.iter().fold(cx.example("frames"), |launch, word| launch.word(word));
        let mut process = launch.through(&["sh", "-c", &script]).spawn()?;
        let status = process.wait_exit(PATIENCE)?;
        ensure!(status.code() == Some(0), "frames {words:?} ended with {status}");
        process.log.wait_end(PATIENCE)?;
        Ok(process.log.texts(Source::Stdout))
    };
    let lines = feed("one\\ntwo\\n", &["eof"])?;
    ensure!(lines == ["\"one\"", "\"two\""], "eof cut {lines:?}");
    let packets = feed("\\000\\000\\000\\003abc\\000\\000\\000\\001d", &["length", "N", "0", "4"])?;
    ensure!(packets == [r#""\0\0\0\u{3}abc""#, r#""\0\0\0\u{1}d""#], "length cut {packets:?}");
    let packets = feed("\\003abc\\001d", &["varint"])?;
    ensure!(packets == ["\"abc\"", "\"d\""], "varint cut {packets:?}");
    let lines = feed("one\\r\\ntwo\\n", &["line"])?;
    ensure!(lines == ["\"one\"", "\"two\""], "line cut {lines:?}");
    Ok(())
}

fn channels(cx: &Cx) -> Result<()> {
    converse(cx.example("channels").spawn()?).map(drop)
}

/// Memcheck sees what no sanitizer does: the use of memory that was never written. (A whole server it cannot run: valgrind
/// knows no pidfd_open(2), not as of 3.19.)
fn channels_memcheck(cx: &Cx) -> Result<()> {
    const VALGRIND: [&str; 5] = [
        "valgrind",
        "--quiet",
        "--trace-children=yes",
        "--child-silent-after-fork=no",
        "--error-exitcode=99",
    ];
    let process = converse(cx.example("channels").through(&VALGRIND).spawn()?)?;
    let complaints = process.log.texts(Source::Stderr);
    ensure!(complaints.is_empty(), "valgrind says:\n{}", complaints.join("\n"));
    Ok(())
}

/// Waits for the example's end, and looks at what it says.
fn converse(mut process: Process) -> Result<Process> {
    let status = process.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    process.log.wait_end(PATIENCE)?;
    let lines = process.log.texts(Source::Stdout);
    for channel in ["shared-memory ring", "socketpair", "message queue"] {
        let counted =
            lines.iter().any(|line| line.starts_with(channel) && line.ends_with("counts 1048576 letters"));
        ensure!(counted, "the {channel} did not carry the megabyte: {lines:?}");
    }
    Ok(process)
}

fn collector(cx: &Cx) -> Result<()> {
    let (path, file) = (cx.dir.join("echo.sock"), cx.dir.join("metrics.jsonl"));
    let launch = cx.example("user_process").word(&file.to_string_lossy());
    let mut server = launch.word(&format!("unix://{}", path.display())).spawn()?;
    let address = Address::Unix(path);
    let mut client = proc::until("the example to listen", PATIENCE, || Client::connect(&address).ok())?;
    let wait_for = |part: &str| {
        let lines = || fs::read_to_string(&file).unwrap_or_default();
        proc::until(part, PATIENCE, || lines().lines().any(|line| line.contains(part)).then_some(()))
    };
    client.expect("hello", "hello")?;
    wait_for("\"connections\":1,\"packets\":1,")?;
    let is_collector = |pid: &i32| proc::title(*pid) == "swoole: process metrics";
    let collector = proc::descendants(server.pid()).into_iter().find(is_collector);
    proc::signal(collector.context("there is no collector")?, Signal::KILL)?;
    wait_for("\"respawns\":1}")?;
    client.expect("still there?", "still there?")?;
    proc::signal(server.pid(), Signal::TERM)?;
    ensure!(server.wait_exit(PATIENCE)?.code() == Some(0), "the stop failed");
    wait_for("\"packets\":2,")
}

fn reactor_echo(cx: &Cx) -> Result<()> {
    let launch = cx.example("reactor_echo").flag("backend", cx.setup.backend).word("tcp://127.0.0.1:0");
    let process = launch.spawn()?;
    let line = process.log.wait_line(Source::Stdout, &["echo on tcp://", cx.setup.backend], PATIENCE)?;
    let address = line.text.split([' ', ',']).nth(2).context("no address in its first line")?;
    let mut clients =
        (0..20).map(|_| Client::connect(&Address::parse(address)?)).collect::<Result<Vec<_>>>()?;
    for (index, client) in clients.iter_mut().enumerate() {
        client.expect(&format!("hello {index}"), &format!("hello {index}"))?;
    }
    Ok(())
}

fn supervise(cx: &Cx) -> Result<()> {
    let mut supervisor = cx.example("supervise").spawn()?;
    supervisor.log.wait_line(Source::Stdout, &["slot 0.2", "is ready"], PATIENCE)?;
    let pid = supervisor.pid();
    let title = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let counters = || -> Vec<i32> {
        proc::children(pid).into_iter().filter(|pid| title(pid).starts_with("supervise: counter")).collect()
    };
    let first = proc::until("three counters", PATIENCE, || Some(counters()).filter(|pids| pids.len() == 3))?;
    proc::signal(first[0], Signal::KILL)?;
    let second = proc::until("a successor of the one that was killed", PATIENCE, || {
        Some(counters()).filter(|pids| pids.len() == 3 && !pids.contains(&first[0]))
    })?;
    ensure!(
        first[1..].iter().all(|pid| second.contains(pid)),
        "the others were replaced too: {first:?} to {second:?}"
    );
    proc::signal(pid, Signal::USR1)?;
    proc::until("new counters after a reload", PATIENCE, || {
        let pids = counters();
        (pids.len() == 3 && !pids.iter().any(|pid| second.contains(pid))).then_some(())
    })?;
    proc::signal(pid, Signal::TERM)?;
    let status = supervisor.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "ended with {status}");
    supervisor.log.wait_line(Source::Stdout, &["all have ended"], PATIENCE)?;
    Ok(())
}
