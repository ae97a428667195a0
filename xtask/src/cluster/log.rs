//! What the processes of a server print, kept as lines that can be waited for.

use anyhow::{Result, bail};
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: Instant,
    pub(super) source: Source,
    pub(super) text: String,
}

#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    /// Streams whose last writer has gone.
    ended: usize,
}

/// The output of one server: both streams, in order of arrival.
pub(super) struct Log {
    pub(super) title: String,
    lines: Mutex<Lines>,
    grown: Condvar,
}

impl Log {
    pub(super) fn new(title: String) -> Arc<Self> {
        Arc::new(Self { title, lines: Mutex::default(), grown: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a stream to its end on a thread of its own.
    pub(super) fn follow(self: &Arc<Self>, source: Source, stream: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut bytes = Vec::new();
            while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                log.lock().lines.push(Line { at: Instant::now(), source, text });
                log.grown.notify_all();
                bytes.clear();
            }
            log.lock().ended += 1;
            log.grown.notify_all();
        });
    }

    /// Adds what was written elsewhere.
    pub(super) fn append(&self, source: Source, text: &str) {
        let line = |text: &str| Line { at: Instant::now(), source, text: text.to_owned() };
        self.lock().lines.extend(text.lines().map(line));
        self.grown.notify_all();
    }

    /// Every line so far.
    pub(super) fn all(&self) -> Vec<Line> {
        self.lock().lines.clone()
    }

    /// The lines of one stream so far.
    pub(super) fn texts(&self, source: Source) -> Vec<String> {
        self.lock().lines.iter().filter(|line| line.source == source).map(|line| line.text.clone()).collect()
    }

    /// Waits until `find` finds what it looks for among the lines.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        find: impl Fn(&[Line]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state.lines) {
                return Ok(found);
            }
            if state.ended == 2 {
                bail!("the server's output ended without: {what}");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {within:?} in vain for output: {what}");
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that has all `parts` in it.
    pub(super) fn wait_line(&self, source: Source, parts: &[&str], within: Duration) -> Result<Line> {
        self.wait(&format!("a line on {source:?} with {parts:?}"), within, |lines| {
            lines.iter().find(|line| line.source == source && has_all(&line.text, parts)).cloned()
        })
    }

    /// Waits until `count` lines of stdout start with `prefix`, and returns these.
    pub(super) fn wait_count(&self, prefix: &str, count: usize, within: Duration) -> Result<Vec<Line>> {
        self.wait(&format!("{count} lines that start with {prefix:?}"), within, |lines| {
            let starts = |line: &&Line| line.source == Source::Stdout && line.text.starts_with(prefix);
            let found: Vec<Line> = lines.iter().filter(starts).cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits until every process that could write here has gone.
    pub(super) fn wait_end(&self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        while state.ended < 2 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{within:?} after its end, some process of the server still holds its output open");
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Whether every part occurs in the text, whatever the case of its letters.
pub(super) fn has_all(text: &str, parts: &[&str]) -> bool {
    let text = text.to_lowercase();
    parts.iter().all(|part| text.contains(&part.to_lowercase()))
}

/// The value of `key=value` in a line of words.
pub(super) fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_waited_for_and_the_end_is_noticed() {
        let log = Log::new("log".into());
        log.follow(Source::Stdout, &b"on_start master=7\nready\n"[..]);
        log.follow(Source::Stderr, &b"half a line"[..]);
        let second = Duration::from_secs(1);
        assert_eq!(
            log.wait_line(Source::Stdout, &["ON_START", "7"], second).unwrap().text,
            "on_start master=7"
        );
        log.wait_end(second).unwrap();
        assert_eq!(log.texts(Source::Stderr), ["half a line"]);
        assert!(log.wait_count("on_", 2, second).unwrap_err().to_string().contains("ended without"));
    }

    #[test]
    fn fields_are_whole_words() {
        let line = "on_worker_start worker=2 pid=77 generation=10";
        assert_eq!(field(line, "pid"), Some("77"));
        assert_eq!(field(line, "worker"), Some("2"));
        assert_eq!(field(line, "work"), None);
    }
}
