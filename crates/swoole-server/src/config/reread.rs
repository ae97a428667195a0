//! What a server does with a configuration that is read again while it runs.

use std::io;
use std::path::{Path, PathBuf};

use toml::Table;

use super::{Address, Config, Listen};

impl Config {
    /// A daemon's working directory is `/`: what was meant from this one stays there.
    pub(crate) fn make_absolute(&mut self, dir: &Path) -> io::Result<()> {
        let place = |path: &mut PathBuf| {
            *path = std::path::absolute(dir.join(&*path))?;
            Ok(())
        };
        let files = [&mut self.log_file, &mut self.pid_file].into_iter().flatten();
        let lists = [&mut self.worker_sandbox_read, &mut self.worker_sandbox_write].into_iter().flatten();
        files.chain(&mut self.chroot).chain(lists).chain([&mut self.task_tmpdir]).try_for_each(place)?;
        self.ssl_files().try_for_each(place)?;
        let paths = self.listen.iter_mut().filter_map(|listen| match &mut listen.address {
            Address::Unix(path) | Address::UnixDatagram(path) => Some(path),
            _ => None,
        });
        paths.into_iter().try_for_each(place)
    }

    /// The keys, without `listen`, that another configuration has other values for.
    pub(crate) fn differs_in(&self, other: &Config) -> Vec<String> {
        // What the server has decided by itself, nobody has to be told of.
        let other = Config { backend: self.backend, ..other.clone() };
        let tables = [self, &other].map(|config| Table::try_from(config).unwrap_or_default());
        let [ours, theirs] = &tables;
        let keys = ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key)));
        keys.filter(|key| *key != "listen" && ours.get(*key) != theirs.get(*key)).cloned().collect()
    }
}

impl Listen {
    /// Whether a socket of this address can become one of `other`, which has the same: nothing differs that is settled when a
    /// socket is made.
    pub(crate) fn has_socket_of(&self, other: &Listen) -> bool {
        let settled = |listen: &Listen| {
            let own = &listen.socket;
            let file = (own.unix_mode, own.unix_user.clone(), own.unix_group.clone());
            (own.ipv6_only, own.reuse_port, file)
        };
        settled(self) == settled(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let ours =
            Config { worker_num: 3, listen: vec!["tcp://[::1]:1".parse().unwrap()], ..Config::default() };
        let theirs = Config { worker_num: 4, listen: vec![], pid_file: Some("/a".into()), ..ours.clone() };
        assert_eq!(ours.differs_in(&ours), Vec::<String>::new());
        assert_eq!(ours.differs_in(&theirs), ["worker_num", "pid_file"]);
        assert_eq!(theirs.differs_in(&ours), ["pid_file", "worker_num"]);
        assert_eq!(ours.differs_in(&Config { listen: vec![], ..ours.clone() }), Vec::<String>::new());
    }

    #[test]
    fn relative_paths_are_meant_from_there() {
        let mut config =
            Config { pid_file: Some("a.pid".into()), log_file: Some("/b.log".into()), ..Config::default() };
        config.listen.push("unix://sock".parse().unwrap_or_else(|_| "unix:///sock".parse().unwrap()));
        config.make_absolute(Path::new("/srv/app")).unwrap();
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!((config.pid_file, config.log_file), (path("/srv/app/a.pid"), path("/b.log")));
    }
}
