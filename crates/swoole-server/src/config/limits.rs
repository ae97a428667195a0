//! What clients may cost: what the keys of limits come to, at each address.

use super::validate::{check_count, check_seconds, wrong};
use super::{Config, ConfigError, Listen, Mode};

/// Bytes of the longest `busy_reply`.
const BUSY_REPLY_MAX: usize = 4096;

/// What follows from the configuration for a client, by where it came in.
#[derive(Clone, Debug)]
pub(crate) struct ByListener<T> {
    general: T,
    /// In the order of the configuration; none if they are all the same.
    own: Box<[T]>,
}

impl<T: PartialEq> ByListener<T> {
    /// `read` gets the configuration as those find it who come in by one listener.
    pub(crate) fn new(config: &Config, read: impl Fn(&Config) -> T) -> ByListener<T> {
        let own: Vec<T> = config.listen.iter().map(|listen| read(&listen.applied_to(config))).collect();
        let general = read(config);
        let own = if own.iter().all(|own| *own == general) { Vec::new() } else { own };
        ByListener { general, own: own.into() }
    }

    /// For a client who came in by this listener. What is not known is as for the server.
    #[inline]
    pub(crate) fn of(&self, listener: impl FnOnce() -> Option<u16>) -> &T {
        if self.own.is_empty() {
            return &self.general;
        }
        listener().and_then(|listener| self.own.get(usize::from(listener))).unwrap_or(&self.general)
    }

    /// What there is at any address.
    pub(crate) fn all(&self) -> &[T] {
        if self.own.is_empty() { std::slice::from_ref(&self.general) } else { &self.own }
    }
}

impl Config {
    /// Checks the keys of limits, and the options of addresses that are in their place.
    pub(super) fn check_limits(&self) -> Result<(), ConfigError> {
        check_count("max_accept_rate", self.max_accept_rate.into())?;
        check_seconds("heartbeat_check_interval", self.heartbeat_check_interval.as_secs_f64())?;
        self.check_limits_of_one()?;
        let own = |listen: &Listen| {
            listen.applied_to(self).check_limits_of_one().map_err(|error| error.of_address(listen))
        };
        self.listen.iter().try_for_each(own)
    }

    fn check_limits_of_one(&self) -> Result<(), ConfigError> {
        check_count("max_connection_per_ip", self.max_connection_per_ip as u64)?;
        check_seconds("heartbeat_idle_time", self.heartbeat_idle_time.as_secs_f64())?;
        check_seconds("max_idle_time", self.max_idle_time.as_secs_f64())?;
        check_seconds("package_max_time", self.package_max_time.as_secs_f64())?;
        check_count("max_queue", self.max_queue as u64)?;
        check_seconds("max_queue_time", self.max_queue_time.as_secs_f64())?;
        if self.busy_reply.len() > BUSY_REPLY_MAX {
            let value = format!("{} bytes", self.busy_reply.len());
            return Err(wrong("busy_reply", value));
        }
        if self.mode != Mode::Base {
            return Ok(());
        }
        let in_base = |key, value: String| {
            let expected = "has no effect in Base mode, where packets wait in the kernel";
            Err(ConfigError::value(key, value, expected))
        };
        match (self.max_queue, self.max_queue_time.as_secs_f64(), &self.busy_reply[..]) {
            (0, 0.0, []) => Ok(()),
            (0, 0.0, reply) => in_base("busy_reply", reply.escape_ascii().to_string()),
            (0, seconds, _) => in_base("max_queue_time", seconds.to_string()),
            (packets, ..) => in_base("max_queue", packets.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listener_has_its_own() {
        let limits = |listen: &[&str]| {
            let listen = listen.iter().map(|listen| listen.parse().unwrap()).collect();
            let config = Config { listen, max_queue: 7, ..Config::default() };
            config.validate().unwrap();
            ByListener::new(&config, |config| config.max_queue)
        };
        let same = limits(&["unix:///a", "unix:///b?max_queue=7"]);
        assert_eq!(same.of(|| unreachable!("they are all the same")), &7);
        let own = limits(&["unix:///a", "unix:///b?max_queue=0"]);
        assert_eq!([Some(0), Some(1), Some(2), None].map(|listener| *own.of(|| listener)), [7, 0, 7, 7]);
        assert_eq!((same.all(), own.all()), (&[7][..], &[7, 0][..]));
    }
}
