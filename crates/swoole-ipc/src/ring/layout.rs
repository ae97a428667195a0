//! What stands where in the shared pages of a ring, and who holds which side.
//!
//! ```text
//!     page 0      magic, version, capacity | head | tail | resume | closed | producer's pid | consumer's pid
//!     page 1..    capacity bytes of records, mapped a second time behind themselves
//!
//!     record      len: u32 | tag: u32 | payload, padded with up to 7 bytes
//! ```

use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::CAPACITY_MAX;
use super::consumer::Consumer;
use super::cursors::Cursors;
use super::producer::Producer;
use crate::error::{Corrupt, Error, Side};
use crate::memory::{Mapping, Memory};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Version of the layout of the shared pages; another version refuses to attach.
pub const LAYOUT_VERSION: u32 = 1;

const MAGIC: u64 = u64::from_le_bytes(*b"swl-ring");

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    capacity: AtomicU64,
    cursors: Cursors,
    /// Process that holds each side, 0 for nobody.
    producer: CachePadded<AtomicU32>,
    consumer: CachePadded<AtomicU32>,
}

// The layout is part of what LAYOUT_VERSION counts.
const _: () = assert!(std::mem::offset_of!(Header, cursors) == 128 && size_of::<Header>() == 7 * 128);

/// Shared-memory byte ring between one producer and one consumer.
///
/// Created before the fork and inherited by it, or opened in a [`Memory`]; clones are the same ring. Each side is claimed by the
/// process that uses it. See the [module](crate::ring) for how the pieces work together.
#[derive(Debug, Clone)]
pub struct Ring(Arc<Pages>);

#[derive(Debug)]
struct Pages {
    name: String,
    mapping: Mapping,
    header_size: usize,
    capacity: usize,
    /// The claims of this process, which no peer can scribble over: two values for one side would be two
    /// `&mut` to the same bytes. They hold the pid, because a fork copies them.
    producer: AtomicU32,
    consumer: AtomicU32,
}

impl Ring {
    /// A new, empty ring in memory of its own. `capacity` in bytes is rounded up to a power of two and at least one
    /// page; it may be at most [`CAPACITY_MAX`]. `name` (up to 249 bytes) appears in errors and in `/proc/PID/maps`.
    /// The pages are allocated by the kernel when they are first written.
    ///
    /// # Errors
    /// [`Error::Capacity`]; [`Error::Os`] when the kernel has no memory, mappings or descriptors left.
    pub fn create(name: &str, capacity: usize) -> Result<Ring, Error> {
        Ring::open(&Memory::create(name, Ring::size(capacity)?)?, 0, name, capacity)
    }

    /// Bytes of shared memory that a ring of this capacity takes; a whole number of pages.
    ///
    /// # Errors
    /// [`Error::Capacity`] for one that [`create`](Ring::create) does not take either.
    pub fn size(capacity: usize) -> Result<usize, Error> {
        let (header_size, capacity) = sizes(capacity)?;
        Ok(header_size + capacity)
    }

    /// The ring of this capacity in the part of `memory` that begins at `start`, in this process: a new one if the part
    /// is all zeros, and the same one for all who open it there. `name` appears in errors.
    ///
    /// # Errors
    /// [`Error::Capacity`]; [`Error::NoSuchPart`]; [`Error::Os`] when the kernel has no memory or mappings left. That
    /// the part is something else is found out by [`producer`](Ring::producer) and [`consumer`](Ring::consumer).
    pub fn open(memory: &Memory, start: usize, name: &str, capacity: usize) -> Result<Ring, Error> {
        let (header_size, capacity) = sizes(capacity)?;
        let mapping = Mapping::mirrored(memory, start, header_size, capacity)?;
        let ring = Ring(Arc::new(Pages {
            name: name.to_owned(),
            mapping,
            header_size,
            capacity,
            producer: AtomicU32::new(0),
            consumer: AtomicU32::new(0),
        }));
        // Whoever is first; several at a time write the same.
        if ring.header().magic.load(Ordering::Acquire) == 0 {
            ring.stamp();
        }
        Ok(ring)
    }

    /// Bytes of records that the ring holds, headers and padding included.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Claims the producer's side for this process. A successor goes on where the published state is:
    /// whatever a dead producer had written but not published never was.
    ///
    /// # Errors
    /// [`Error::SideTaken`] while another claim stands; [`Error::Corrupt`] when the shared header cannot
    /// be true.
    pub fn producer(&self) -> Result<Producer, Error> {
        self.attach(Side::Producer, Producer::open)
    }

    /// Claims the consumer's side for this process. It starts at the last position that was released, or
    /// at the one that the producer has set by [`Producer::resume_at`] or [`Producer::rewind`].
    ///
    /// # Errors
    /// As [`producer`](Ring::producer).
    pub fn consumer(&self) -> Result<Consumer, Error> {
        self.attach(Side::Consumer, Consumer::open)
    }

    fn attach<T>(&self, side: Side, open: impl FnOnce(Claim) -> Result<T, Corrupt>) -> Result<T, Error> {
        // First: who evicts repairs the header before it lets go of the dead one's claim.
        let claim = Claim::take(self, side).map_err(|pid| Error::SideTaken {
            name: self.0.name.clone(),
            side,
            pid,
        })?;
        let header = self.header();
        let magic = header.magic.load(Ordering::Acquire);
        let capacity = self.capacity() as u64;
        expect("magic", magic, MAGIC)?;
        expect("version", header.version.load(Ordering::Relaxed).into(), LAYOUT_VERSION.into())?;
        expect("capacity", header.capacity.load(Ordering::Relaxed), capacity)?;
        Ok(open(claim)?)
    }

    /// Writes what stands in the header of every ring of this capacity.
    fn stamp(&self) {
        let header = self.header();
        header.capacity.store(self.capacity() as u64, Ordering::Relaxed);
        header.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    #[inline]
    pub(super) fn cursors(&self) -> &Cursors {
        &self.header().cursors
    }

    /// The bytes of the ring from `position` on: `capacity` of them lie one after another.
    #[inline]
    pub(super) fn bytes(&self, position: u64) -> NonNull<u8> {
        let offset = self.0.header_size + (position as usize & (self.0.capacity - 1));
        // SAFETY: the mapping has header_size + 2 * capacity bytes and the mask keeps the second term
        // below capacity, so at least capacity bytes follow.
        unsafe { self.0.mapping.base().add(offset) }
    }

    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the mapping starts page-aligned with at least a page, which is larger than Header; it
        // is zeroed at creation and lives as long as self. Header consists of atomics only, so any bit
        // pattern is valid and a peer may store at any time.
        unsafe { self.0.mapping.base().cast::<Header>().as_ref() }
    }

    fn shared_claim(&self, side: Side) -> &AtomicU32 {
        match side {
            Side::Producer => &self.header().producer,
            Side::Consumer => &self.header().consumer,
        }
    }

    fn private_claim(&self, side: Side) -> &AtomicU32 {
        match side {
            Side::Producer => &self.0.producer,
            Side::Consumer => &self.0.consumer,
        }
    }
}

/// Of the header, and of the data.
fn sizes(capacity: usize) -> Result<(usize, usize), Error> {
    if !(1..=CAPACITY_MAX).contains(&capacity) {
        return Err(Error::Capacity { capacity });
    }
    let page = rustix::param::page_size();
    Ok((page, capacity.next_power_of_two().max(page)))
}

fn expect(what: &'static str, value: u64, expected: u64) -> Result<(), Corrupt> {
    if value == expected { Ok(()) } else { Err(Corrupt { what, value, range: expected..=expected }) }
}

/// One side of a ring, held by this process until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) ring: Ring,
    side: Side,
    pid: u32,
}

impl Claim {
    /// The pid of the holder if there is one.
    fn take(ring: &Ring, side: Side) -> Result<Claim, u32> {
        let pid = std::process::id();
        let private = ring.private_claim(side);
        let before = private.load(Ordering::Acquire);
        // A claim inherited from the parent by fork is not ours: the parent's pid stands there.
        if before == pid
            || private.compare_exchange(before, pid, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return Err(pid);
        }
        if let Err(holder) =
            ring.shared_claim(side).compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire)
        {
            private.store(0, Ordering::Release);
            return Err(holder);
        }
        Ok(Claim { ring: ring.clone(), side, pid })
    }

    /// Forgets the shared claim of the other side, whose process is dead, and repairs the rest of the
    /// header before; the cursors, which the caller knows, are repaired already.
    pub(super) fn evict_peer(&self) {
        self.ring.stamp();
        self.ring.shared_claim(self.side).store(self.pid, Ordering::Release);
        let peer = match self.side {
            Side::Producer => Side::Consumer,
            Side::Consumer => Side::Producer,
        };
        self.ring.shared_claim(peer).store(0, Ordering::Release);
    }
}

impl Drop for Claim {
    /// Gives the side up, if this is the process that claimed it: a fork's copy of the value may be
    /// dropped without harm.
    fn drop(&mut self) {
        if std::process::id() == self.pid {
            let shared = self.ring.shared_claim(self.side);
            // Not ours any more if the peer has taken us for dead and given the side to another.
            let _ = shared.compare_exchange(self.pid, 0, Ordering::AcqRel, Ordering::Relaxed);
            self.ring.private_claim(self.side).store(0, Ordering::Release);
        }
    }
}
