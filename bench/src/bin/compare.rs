//! The testbed server's backends and transports against tokio, under the same load: see `--help`.

use anyhow::{Context, Result, ensure};
use lexopt::prelude::*;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};
use swoole_bench::Framing;
use swoole_bench::load::Summary;
use swoole_bench::server::{Server, cpu_time};

const HELP: &str = "\
compare [--testbed PATH] [OPTIONS]

Starts tokio_echo and every variant of the testbed server one after the other, --runs times over and each time in
another order, puts the same load on each, and prints a table of medians. Without --testbed only the rival is measured.

  --testbed PATH          the testbed server: target/release/examples/testbed
  --variant FLAGS         flags of a variant of it; may repeat. Default: each backend with each transport, with two
                          reactors and two workers and with one of each
  --runs N                times that each variant is started and measured (5)
  --seconds S             length of a measurement (3)
  --connections N         (64)
  --size BYTES            (128)
  --depth N               (1)
  --framing raw|length    (length)

CPU is the time of all processes of a server in user and system mode. System calls are counted by `perf stat`, in a
short run of its own.";

/// The flags that make the testbed speak the load client's framing.
const LENGTH_FLAGS: &str =
    "--framing length --package-length-type N --package-length-offset 0 --package-body-offset 4";
const WARM_UP_SECONDS: f64 = 0.3;
const COUNTING_SECONDS: f64 = 1.0;

struct Options {
    testbed: Option<PathBuf>,
    variants: Vec<String>,
    runs: usize,
    seconds: f64,
    connections: usize,
    size: usize,
    depth: usize,
    framing: Framing,
}

/// A server to measure, and what was measured.
struct Variant {
    name: String,
    program: PathBuf,
    flags: String,
    runs: Vec<Run>,
    calls_per_request: Option<f64>,
    failure: Option<String>,
}

struct Run {
    requests_per_second: f64,
    cpu_us_per_request: f64,
    p50_us: f64,
    p99_us: f64,
}

fn main() -> Result<ExitCode> {
    let Some(options) = options().context("see compare --help")? else {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let mut variants = variants(&options)?;
    let mut order: Vec<usize> = (0..variants.len()).collect();
    for round in 0..=options.runs {
        fastrand::shuffle(&mut order);
        for &index in &order {
            let variant = &mut variants[index];
            if variant.failure.is_some() {
                continue;
            }
            eprintln!("compare: round {round} of {}: {}", options.runs, variant.name);
            let measured = if round == 0 { variant.count_calls(&options) } else { variant.measure(&options) };
            if let Err(error) = measured {
                eprintln!("compare: {}: {error:#}", variant.name);
                variant.failure = Some(format!("{error:#}"));
            }
        }
    }
    print_table(&options, &variants)?;
    let failed = variants.iter().any(|variant| variant.failure.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        testbed: None,
        variants: Vec::new(),
        runs: 5,
        seconds: 3.0,
        connections: 64,
        size: 128,
        depth: 1,
        framing: Framing::Length,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("testbed") => options.testbed = Some(args.value()?.into()),
            Long("variant") => options.variants.push(args.value()?.string()?),
            Long("runs") => options.runs = args.value()?.parse()?,
            Long("seconds") => options.seconds = args.value()?.parse()?,
            Long("connections") => options.connections = args.value()?.parse()?,
            Long("size") => options.size = args.value()?.parse()?,
            Long("depth") => options.depth = args.value()?.parse()?,
            Long("framing") => options.framing = args.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    ensure!(options.runs > 0, "--runs is 0");
    if options.variants.is_empty() {
        for (reactors, workers) in [(2, 2), (1, 1)] {
            for backend in ["epoll", "io_uring"] {
                for ipc in ["ring", "socketpair"] {
                    options.variants.push(format!(
                        "--backend {backend} --ipc {ipc} --reactor-num {reactors} --worker-num {workers}"
                    ));
                }
            }
        }
    }
    Ok(Some(options))
}

/// The rival first: the ratios are against its first line.
fn variants(options: &Options) -> Result<Vec<Variant>> {
    let new = |name: String, program: &Path, flags: String| Variant {
        name,
        program: program.to_owned(),
        flags,
        runs: Vec::new(),
        calls_per_request: None,
        failure: None,
    };
    let tokio = beside_this("tokio_echo")?;
    let mut variants: Vec<Variant> = [2, 1]
        .map(|threads| {
            let flags = format!("--threads {threads} --framing {}", options.framing.name());
            new(format!("tokio --threads {threads}"), &tokio, flags)
        })
        .into();
    if let Some(testbed) = &options.testbed {
        let framing = match options.framing {
            Framing::Raw => "--framing raw",
            Framing::Length => LENGTH_FLAGS,
        };
        variants.extend(options.variants.iter().map(|flags| {
            new(flags.replace("--", "").replace("-num", "s"), testbed, format!("{framing} {flags}"))
        }));
    }
    Ok(variants)
}

impl Variant {
    fn start(&self, options: &Options) -> Result<Server> {
        let mut command = Command::new(&self.program);
        command.args(["--listen", "tcp://127.0.0.1:0"]).args(self.flags.split_whitespace());
        let server = Server::start(&mut command)?;
        run_load(load_command(options, &server, WARM_UP_SECONDS)?)?;
        Ok(server)
    }

    fn measure(&mut self, options: &Options) -> Result<()> {
        let server = self.start(options)?;
        let processes = server.processes()?;
        let before = cpu_time(&processes)?;
        let summary = run_load(load_command(options, &server, options.seconds)?)?;
        let cpu = cpu_time(&processes)? - before;
        server.stop()?;
        self.runs.push(Run {
            requests_per_second: summary.requests_per_second,
            cpu_us_per_request: cpu.as_secs_f64() * 1e6 / summary.requests as f64,
            p50_us: summary.p50_us,
            p99_us: summary.p99_us,
        });
        Ok(())
    }

    fn count_calls(&mut self, options: &Options) -> Result<()> {
        let server = self.start(options)?;
        let processes: Vec<String> = server.processes()?.iter().map(u32::to_string).collect();
        let load = load_command(options, &server, COUNTING_SECONDS)?;
        let report = env::temp_dir().join(format!("swoole-bench-perf-{}", std::process::id()));
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &processes.join(","), "-o"])
            .arg(&report);
        perf.arg("--").arg(load.get_program()).args(load.get_args());
        let counted = run_load(perf).and_then(|summary| {
            let report = fs::read_to_string(&report)?;
            let calls = report
                .lines()
                .find(|line| line.contains("sys_enter"))
                .and_then(|line| line.split(',').next()?.parse::<u64>().ok())
                .with_context(|| format!("perf counted nothing: {report:?}"))?;
            Ok(calls as f64 / summary.requests as f64)
        });
        let _ = fs::remove_file(&report);
        server.stop()?;
        match counted {
            Ok(calls) => self.calls_per_request = Some(calls),
            Err(error) => eprintln!("compare: {}: system calls not counted: {error:#}", self.name),
        }
        Ok(())
    }

    fn median(&self, value: impl Fn(&Run) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.runs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        let lower = values[(values.len() - 1) / 2];
        Some((lower + upper) / 2.0)
    }
}

fn beside_this(program: &str) -> Result<PathBuf> {
    let path = env::current_exe()?.with_file_name(program);
    ensure!(path.exists(), "{} is missing: cargo build --release", path.display());
    Ok(path)
}

fn load_command(options: &Options, server: &Server, seconds: f64) -> Result<Command> {
    let mut command = Command::new(beside_this("load")?);
    for (flag, value) in [
        ("--address", server.address().to_string()),
        ("--connections", options.connections.to_string()),
        ("--size", options.size.to_string()),
        ("--depth", options.depth.to_string()),
        ("--seconds", seconds.to_string()),
        ("--framing", options.framing.name().to_owned()),
    ] {
        command.args([flag, &value]);
    }
    Ok(command)
}

fn run_load(mut command: Command) -> Result<Summary> {
    let output = command.output().with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(output.status.success(), "load: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn print_table(options: &Options, variants: &[Variant]) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "{} connections, {} bytes, depth {}, framing {}; {} runs of {} s; Linux {}, {} cores, client on the same\n",
        options.connections,
        options.size,
        options.depth,
        options.framing.name(),
        options.runs,
        options.seconds,
        kernel.trim(),
        std::thread::available_parallelism()?
    );
    println!(
        "| variant | requests/s | to tokio | CPU us/request | to tokio | system calls/request | p50 us | p99 us |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let rate = |variant: &Variant| variant.median(|run| run.requests_per_second);
    let cpu = |variant: &Variant| variant.median(|run| run.cpu_us_per_request);
    let ratio = |own: Option<f64>, rival: Option<f64>| own.zip(rival).map(|(own, rival)| own / rival);
    let cell = |value: Option<f64>, digits| value.map_or("-".into(), |value| format!("{value:.digits$}"));
    for variant in variants {
        if let Some(failure) = &variant.failure {
            println!("| {} | failed: {} |||||||", variant.name, failure.replace(['\n', '|'], " "));
            continue;
        }
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            variant.name,
            cell(rate(variant), 0),
            cell(ratio(rate(variant), rate(&variants[0])), 2),
            cell(cpu(variant), 2),
            cell(ratio(cpu(variant), cpu(&variants[0])), 2),
            cell(variant.calls_per_request, 2),
            cell(variant.median(|run| run.p50_us), 0),
            cell(variant.median(|run| run.p99_us), 0),
        );
    }
    Ok(())
}
