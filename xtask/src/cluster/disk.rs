//! A small disk that can be full.

use super::matrix::Cx;
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes that it holds.
const SIZE: usize = 4 << 20;

/// A directory, by itself on a disk of few megabytes where this process may mount one.
pub(super) struct Disk {
    dir: PathBuf,
    mounted: bool,
}

impl Disk {
    pub(super) fn mount(cx: &Cx) -> Result<Self> {
        let dir = cx.dir.join("disk");
        fs::create_dir(&dir)?;
        let size = std::ffi::CString::new(format!("size={SIZE}"))?;
        let mounted = match mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), size.as_c_str()) {
            Ok(()) => true,
            Err(Errno::PERM | Errno::ACCESS) => {
                println!("        note: no disk is filled, only root may mount one");
                false
            }
            Err(error) => return Err(error).with_context(|| format!("mount a tmpfs on {}", dir.display())),
        };
        Ok(Self { dir, mounted })
    }

    /// Whether it can be full.
    pub(super) fn is_small(&self) -> bool {
        self.mounted
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.file(name)).unwrap_or_default()).into_owned()
    }

    /// Empties a file that takes a quarter of the disk. Whoever appends to it goes on at its start.
    pub(super) fn trim(&self, name: &str) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.file(name))?;
        if file.metadata()?.len() > SIZE as u64 / 4 {
            file.set_len(0)?;
        }
        Ok(())
    }

    /// Leaves no byte free, until [`clear`](Self::clear).
    pub(super) fn fill(&self) -> Result<()> {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(self.file("filler"))?;
        // Pages by themselves: a large write may end early, and leave some.
        let page = [0; 4096];
        for _ in 0..2 * SIZE / page.len() {
            if let Err(error) = file.write_all(&page) {
                let full = error.kind() == std::io::ErrorKind::StorageFull;
                return if full { Ok(()) } else { Err(error).context("fill a disk") };
            }
        }
        anyhow::bail!("a disk of {SIZE} bytes is not full after twice as many")
    }

    pub(super) fn clear(&self) -> Result<()> {
        let removed = fs::remove_file(self.file("filler"));
        removed.context("make room on a disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let dir: &Path = &self.dir;
            // Detached: a server that did not stop still has its log open.
            if let Err(error) = unmount(dir, UnmountFlags::DETACH) {
                println!("        note: unmount {}: {error}", dir.display());
            }
        }
    }
}
