//! What a configuration allows a server to take in memory: `--explain`.
//!
//! `bounds.md` says what each number is the edge of; here they are multiplied and added up.

use std::fmt::Write as _;

use super::value::size;
use super::{Config, ConfigError, KIB, Mode};
use crate::link::UNCOMMITTED_MAX;
use crate::plan::Plan;

/// What is read from a client at once, beyond the packet that it belongs to.
const READ: usize = 256 * KIB;
/// What a connection takes for itself in its reactor: its books, and those of the event loop.
const BOOKS: usize = 2 * KIB;
/// What a subscription takes, with the name of its topic.
const SUBSCRIPTION: usize = 512;

/// One line: so many of something, of so many bytes each at most, and the keys that say so.
struct Line {
    what: &'static str,
    count: usize,
    each: usize,
    keys: &'static str,
}

impl Line {
    fn bytes(&self) -> u128 {
        self.count as u128 * self.each as u128
    }
}

impl Config {
    /// What the server may take in memory at most: what is shared, what a client costs, what all of them do; each with the
    /// keys that bound it. The flag `--explain` prints it.
    ///
    /// All of it would be there only if every client and every worker were at all of their limits at once; pages are taken
    /// when they are used. Not among it are what handlers keep for themselves (`max_memory`), what the program has before
    /// the start, user processes, and what the kernel has in the buffers of sockets (`net.ipv4.tcp_rmem`, `tcp_wmem`).
    ///
    /// # Errors
    /// Those of [`connection_limit`](Config::connection_limit); the configuration is valid.
    pub fn explain(&self) -> Result<String, ConfigError> {
        let clients = self.connection_limit()?;
        let plan = Plan::new(self, clients).map_err(|error| {
            ConfigError::value("ring_size", size::format(self.ring_size), error.to_string())
        })?;
        let parts = [
            ("shared, once for all processes", self.shared_lines(&plan)),
            ("each client", self.lines_of_a_client()),
            (
                "all clients",
                vec![Line {
                    what: "clients",
                    count: clients,
                    each: sum(&self.lines_of_a_client()) as usize,
                    keys: "max_connection, RLIMIT_NOFILE",
                }],
            ),
            ("processes", self.lines_of_processes()),
        ];
        let total: u128 =
            parts.iter().filter(|(title, _)| *title != "each client").map(|(_, lines)| sum(lines)).sum();
        let mut text =
            String::from("Memory that this configuration allows, if everything is at its limit at once:\n");
        for (title, lines) in &parts {
            let _ = write!(text, "\n{title:<54}{:>9}\n", human(sum(lines)));
            for Line { what, count, each, keys } in lines {
                let product = format!("{count} x {}", human(*each as u128));
                let _ = writeln!(
                    text,
                    "  {what:<34}{product:>18}{:>9}  {keys}",
                    human(*count as u128 * *each as u128)
                );
            }
        }
        let _ = writeln!(text, "\n{:<54}{:>9}", "total", human(total));
        text += "\nBeside it: what handlers keep (max_memory), user processes, and the kernel's buffers of sockets.\n";
        Ok(text)
    }

    fn shared_lines(&self, plan: &Plan) -> Vec<Line> {
        let keys = [
            "",
            "max_connection",
            "ring_size, ring_memory_max, worker_num, reactor_num",
            "task_queue_max, worker_num, task_worker_num",
            "max_connection",
        ];
        // Nobody touches that, otherwise.
        let has_tls = self.listen.iter().any(|listen| listen.tls);
        let part = |((what, each), keys)| Line { what, count: 1, each, keys };
        let has_tasks = self.task_worker_num > 0;
        let large_tasks = if has_tasks { self.task_buffer_size } else { 0 };
        let lines =
            plan.parts().into_iter().zip(keys).chain([(("large tasks", large_tasks), "task_buffer_size")]);
        let lines = lines.map(part);
        lines.filter(|line| line.each > 0 && (has_tls || line.what != Plan::TLS)).collect()
    }

    /// The largest of all addresses.
    fn packet_max(&self) -> usize {
        let own = self.listen.iter().filter_map(|listen| listen.package_max_length);
        own.chain([self.package_max_length]).max().unwrap_or_default()
    }

    fn lines_of_a_client(&self) -> Vec<Line> {
        let one = |what, each, keys| Line { what, count: 1, each, keys };
        vec![
            // A buffer that grows has up to as much again in reserve.
            one("a packet that is not complete", 2 * (self.packet_max() + READ), "package_max_length"),
            one("replies that it does not read", self.socket_buffer_size, "socket_buffer_size"),
            one("topics", self.max_subscription * SUBSCRIPTION, "max_subscription"),
            one("its connection", BOOKS, ""),
        ]
    }

    fn lines_of_processes(&self) -> Vec<Line> {
        let seats = usize::from(self.seats());
        let links =
            if self.mode == Mode::Process { self.reactors() * usize::from(self.worker_num) } else { 0 };
        let link = 2 * UNCOMMITTED_MAX + 2 * self.socket_buffer_size + self.packet_max() + self.ring_bytes();
        let lines = vec![
            Line {
                what: "replies and packets of a link",
                count: links,
                each: link,
                keys: "worker_num, reactor_num, socket_buffer_size",
            },
            Line {
                what: "a packet in pieces, in a worker",
                count: links,
                each: self.packet_max(),
                keys: "worker_num, reactor_num, package_max_length",
            },
            Line {
                what: "what waits for another process",
                count: seats * self.boxes(),
                each: self.socket_buffer_size,
                keys: "worker_num, task_worker_num, socket_buffer_size",
            },
            Line {
                what: "timers",
                count: usize::from(self.worker_num + self.task_worker_num) * self.max_timer,
                each: 128,
                keys: "max_timer",
            },
        ];
        lines.into_iter().filter(|line| line.count > 0).collect()
    }
}

fn sum(lines: &[Line]) -> u128 {
    lines.iter().map(Line::bytes).sum()
}

/// With at most four digits: `512K`, `1.5M`.
fn human(bytes: u128) -> String {
    let units = ["", "K", "M", "G", "T", "P"];
    let power = (bytes.max(1).ilog2() / 10).min(5);
    let tenths = (bytes * 10).div_ceil(1 << (10 * power));
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{}", units[power as usize]),
        (whole, tenth) => format!("{whole}.{tenth}{}", units[power as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            listen: vec!["unix:///a".parse().unwrap()],
            worker_num: 2,
            reactor_num: 2,
            max_connection: 100,
            ..Config::default()
        }
    }

    /// The last column of the line that begins so.
    fn figure(text: &str, line: &str) -> String {
        let line =
            text.lines().find(|text| text.trim_start().starts_with(line)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().last().unwrap().to_owned()
    }

    #[test]
    fn sizes_are_rounded_up() {
        let cases =
            [(0, "0"), (1000, "1000"), (1024, "1K"), (1025, "1.1K"), (3 << 19, "1.5M"), (10 << 40, "10T")];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn clients_cost_what_their_limits_allow() {
        let mut config = config();
        (config.package_max_length, config.socket_buffer_size) = (768 << 10, 1 << 20);
        config.max_subscription = 2;
        let text = config.explain().unwrap();
        // Twice the packet and a read, the replies, two topics, and the connection.
        assert_eq!(figure(&text, "each client"), "3.1M");
        assert_eq!(figure(&text, "all clients"), human(100 * (3 * (1 << 20) + (1 << 10) + (2 << 10))));
        config.listen.push("unix:///b?package_max_length=1792K".parse().unwrap());
        assert_eq!(figure(&config.explain().unwrap(), "each client"), "5.1M", "the largest packet counts");
    }

    #[test]
    fn what_is_shared_is_what_is_mapped() {
        for mode in Mode::ALL {
            let mut config = Config { mode, ..config() };
            assert!(!config.explain().unwrap().contains(Plan::TLS), "nobody has TLS");
            config.listen.push("tls://127.0.0.1:0".parse().unwrap());
            let plan = Plan::new(&config, config.connection_limit().unwrap()).unwrap();
            let text = config.explain().unwrap();
            assert_eq!(figure(&text, "shared"), human(plan.size as u128));
            assert!(text.contains(Plan::TLS), "{text}");
            assert_eq!(text.contains("rings"), mode == Mode::Process, "{text}");
            assert!(figure(&text, "total").ends_with('G') || figure(&text, "total").ends_with('M'), "{text}");
        }
    }
}
