//! The table, as programs see it.

use std::fmt;
use std::marker::PhantomData;

use rustix::rand::{GetRandomFlags, getrandom};
use swoole_ipc::Memory;
use swoole_ipc::words::Words;

use crate::error::Error;
use crate::key::{Hashing, Key};
use crate::layout::{Layout, header};
use crate::store::{BadRow, Change, Nested, NoneFree, Store, Trouble};
use crate::sync::Ordering;
use crate::value::{Cells, Column, Number, Row, Value};

/// Counted up with every change of what stands where, or of what it means.
const LAYOUT: u64 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"swtable\0") + (LAYOUT << 56);

/// How a table is to be.
///
/// ```
/// use swoole_table::{Options, Row, Table};
///
/// #[derive(Row)]
/// struct Hits {
///     count: u64,
/// }
///
/// let options = Options::new(10_000).key_max(16).name("hits per address");
/// assert_eq!(options.memory_size::<Hits>() / 10_000, 77); // bytes per row
/// let table: Table<Hits> = Table::with(&options)?;
/// # Ok::<(), swoole_table::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    rows: usize,
    key_max: usize,
    name: String,
    huge_pages: bool,
}

impl Options {
    /// A table for so many rows: 1 to [`ROWS_MAX`](crate::ROWS_MAX). All of them can be used, whatever their keys are.
    pub fn new(rows: usize) -> Options {
        Options { rows, key_max: 63, name: "table".to_owned(), huge_pages: false }
    }

    /// Length of the longest key, bytes: 1 to [`KEY_MAX`](crate::KEY_MAX); 63, as in Swoole, unless this is called. Each row
    /// has room for it, rounded up to 8.
    pub fn key_max(mut self, bytes: usize) -> Options {
        self.key_max = bytes;
        self
    }

    /// What errors and `/proc/PID/maps` call it, up to 249 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Options {
        self.name = name.into();
        self
    }

    /// Whether the kernel is asked for pages of 2 MiB (on x86-64); not unless this is called. With more rows than the
    /// processor has addresses at hand (some ten thousand) each operation takes a quarter less. What a table takes of its
    /// memory then grows by 2 MiB at a time, so one that is nearly empty takes more. It is only a wish: the kernel grants it
    /// where `/sys/kernel/mm/transparent_hugepage/shmem_enabled` is `advise` (as a rule it is `never`).
    pub fn huge_pages(mut self, wanted: bool) -> Options {
        self.huge_pages = wanted;
        self
    }

    /// Bytes of shared memory that a table of `R` takes, once every row was used: pages cost memory when they are touched
    /// first. 0 if there can be no such table.
    ///
    /// Per row that is 32 bytes and the key's room and the columns', each rounded up to 8, and 8 more if those words are odd
    /// in number. Besides, there are up to 1024 locks of 64 bytes and twice a row's columns (128 at least).
    pub fn memory_size<R: Row>(&self) -> usize {
        self.layout::<R>().map_or(0, |layout| Words::size(1, layout.words))
    }

    fn layout<R: Row>(&self) -> Result<Layout, Error> {
        let (rows, key_max) = (self.rows, self.key_max);
        Layout::new(rows, key_max, R::WORDS).ok_or(Error::Size { rows, key_max })
    }
}

/// A hash table in shared memory: rows of typed columns, by keys of bytes.
///
/// Created before the fork; clones, also those that a fork makes, are the same table. Any process and any thread may use it
/// at any time. Each operation on a row is atomic: nobody ever sees half of it, also if the process dies amid it. What
/// happens then is what had happened by the moment of its death: all of the operation or nothing.
///
/// Readers ([`get`](Table::get), [`exists`](Table::exists), [`iter`](Table::iter)) take no lock. Writers wait for each other
/// only if their keys share one of up to 1024 locks. Who waits for a dead process notices within some milliseconds, and
/// repairs what it has left. A process that is stopped (`SIGSTOP`) is not dead: writers of its lock wait for it.
///
/// All processes must be in one pid namespace, by which they find out who lives.
pub struct Table<R> {
    words: Words,
    layout: Layout,
    hashing: Hashing,
    name: String,
    of: PhantomData<fn(R) -> R>,
}

impl<R: Row> Table<R> {
    /// A table for `rows` rows, with keys of up to 63 bytes.
    ///
    /// # Errors
    /// As [`with`](Table::with).
    pub fn create(rows: usize) -> Result<Table<R>, Error> {
        Table::with(&Options::new(rows))
    }

    /// A table as `options` say, in memory of its own, for this process and those that fork from it.
    ///
    /// # Errors
    /// [`Error::Size`] if it can not be like that; [`Error::Memory`] when the kernel has none left.
    pub fn with(options: &Options) -> Result<Table<R>, Error> {
        Table::open(options, &Memory::create(&options.name, options.memory_size::<R>())?, 0)
    }

    /// The table that lies in a part of `memory` which begins at `start`, a multiple of the page size, and has
    /// [`memory_size`](Options::memory_size) bytes. If there are zeros, a table is made of them: by one process, before others
    /// open it.
    ///
    /// For processes that do not fork from the creator, but get the memory by its descriptor.
    ///
    /// # Errors
    /// [`Error::Other`] if something else lies there; [`Error::Size`]; [`Error::Memory`].
    pub fn open(options: &Options, memory: &Memory, start: usize) -> Result<Table<R>, Error> {
        let layout = options.layout::<R>()?;
        let words = Words::open(memory, start, 1, layout.words)?.swap_remove(0);
        let name = options.name.clone();
        // Only a wish: a kernel without them is none the worse.
        if options.huge_pages {
            let _ = words.prefer_huge_pages();
        }
        if words[header::MAGIC].load(Ordering::Acquire) == 0 {
            let mut seed = [0; 8];
            getrandom(&mut seed, GetRandomFlags::empty()).map_err(|errno| Error::Os {
                operation: "getrandom",
                table: name.clone(),
                source: errno.into(),
            })?;
            let seed = u64::from_ne_bytes(seed);
            Store::new(&words, &layout).lay_out();
            words[header::SEED].store(seed, Ordering::Relaxed);
            for (at, word, _) in facts::<R>(&layout, Hashing::new(seed)) {
                words[at].store(word, Ordering::Relaxed);
            }
            words[header::MAGIC].store(MAGIC, Ordering::Release);
        }
        let hashing = Hashing::new(words[header::SEED].load(Ordering::Relaxed));
        let facts = facts::<R>(&layout, hashing).into_iter().chain([(header::MAGIC, MAGIC, "kinds")]);
        for (at, word, what) in facts {
            if words[at].load(Ordering::Relaxed) != word {
                return Err(Error::Other { table: name, what });
            }
        }
        Ok(Table { words, layout, hashing, name, of: PhantomData })
    }

    /// Bytes of shared memory that a table of so many rows takes, with keys of up to 63 bytes: [`Options::memory_size`].
    pub fn memory_size(rows: usize) -> usize {
        Options::new(rows).memory_size::<R>()
    }

    /// How many rows there can be.
    pub fn capacity(&self) -> usize {
        self.layout.rows
    }

    /// How many rows there are. Exact while nobody writes. Adds up to 1024 numbers.
    pub fn len(&self) -> usize {
        self.store().len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row of this key, as it is at one moment.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Corrupt`].
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<R>, Error> {
        self.read(key.as_ref(), |cells| R::load(cells.part(0, R::WORDS)))
    }

    /// One column of the row.
    ///
    /// # Errors
    /// As [`get`](Table::get).
    #[inline]
    pub fn get_column<V: Value>(
        &self,
        key: impl AsRef<[u8]>,
        column: Column<R, V>,
    ) -> Result<Option<V>, Error> {
        self.read(key.as_ref(), |cells| V::load(cells.part(column.at(), V::WORDS)))
    }

    /// Whether there is a row of this key.
    ///
    /// # Errors
    /// As [`get`](Table::get).
    pub fn exists(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        Ok(self.read(key.as_ref(), |_| ())?.is_some())
    }

    /// Makes `row` the row of this key, whether there was one or not.
    ///
    /// # Errors
    /// [`Error::Full`] if there was none and no room for one; [`Error::Key`], [`Error::Nested`], [`Error::Corrupt`].
    pub fn set(&self, key: impl AsRef<[u8]>, row: &R) -> Result<(), Error> {
        let key = self.key(key.as_ref())?;
        self.write(&key, |change, found| match found {
            Some(found) => {
                row.store(&mut |at, word| change.set(found, at, word));
                Ok(((), Then::Keep))
            }
            None => Ok(((), Then::Insert(Whole(row)))),
        })
    }

    /// Makes `row` the row of this key if there is none: false if there is one, which stays as it is.
    ///
    /// # Errors
    /// As [`set`](Table::set).
    pub fn insert(&self, key: impl AsRef<[u8]>, row: &R) -> Result<bool, Error> {
        let key = self.key(key.as_ref())?;
        self.write(&key, |_, found| match found {
            Some(_) => Ok((false, Then::Keep)),
            None => Ok((true, Then::Insert(Whole(row)))),
        })
    }

    /// Sets one column; false if there is no such row.
    ///
    /// # Errors
    /// As [`get`](Table::get), and [`Error::Nested`].
    pub fn set_column<V: Value>(
        &self,
        key: impl AsRef<[u8]>,
        column: Column<R, V>,
        value: &V,
    ) -> Result<bool, Error> {
        let key = self.key(key.as_ref())?;
        self.write(&key, |change, found| {
            if let Some(row) = found {
                value.store(&mut |at, word| change.set(row, column.at() + at, word));
            }
            Ok((found.is_some(), Then::<Nothing>::Keep))
        })
    }

    /// Adds `by` to a column, and yields the sum. If there is no such row, one is made, whose columns are 0 (and strings
    /// empty) otherwise.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the column's type cannot hold the sum; else as [`set`](Table::set).
    #[inline]
    pub fn incr<V: Number>(&self, key: impl AsRef<[u8]>, column: Column<R, V>, by: V) -> Result<V, Error> {
        self.calculate(key.as_ref(), column, |value| value.plus(by))
    }

    /// Subtracts `by` from a column, as [`incr`](Table::incr) adds: below 0 is [`Error::Overflow`] where the type has nothing
    /// below.
    ///
    /// # Errors
    /// As [`incr`](Table::incr).
    #[inline]
    pub fn decr<V: Number>(&self, key: impl AsRef<[u8]>, column: Column<R, V>, by: V) -> Result<V, Error> {
        self.calculate(key.as_ref(), column, |value| value.minus(by))
    }

    /// Changes a row by a function, while nobody else changes it, and yields what the function does; `None`, without calling
    /// it, if there is no such row. Readers see the row as it was until the function has returned. If it panics, nothing has
    /// changed.
    ///
    /// Others who want the same lock wait meanwhile, so it should be short. It must not write to any table
    /// ([`Error::Nested`]), and not fork.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Nested`], [`Error::Corrupt`].
    pub fn update<T>(&self, key: impl AsRef<[u8]>, by: impl FnOnce(&mut R) -> T) -> Result<Option<T>, Error> {
        let key = self.key(key.as_ref())?;
        self.write(&key, |change, found| match found {
            Some(row) => Ok((self.rewrite(change, row, by), Then::<Nothing>::Keep)),
            None => Ok((None, Then::<Nothing>::Keep)),
        })
    }

    /// As [`update`](Table::update), of `new` if there is no such row yet; then that is made one.
    ///
    /// # Errors
    /// As [`set`](Table::set).
    pub fn upsert<T>(
        &self,
        key: impl AsRef<[u8]>,
        mut new: R,
        by: impl FnOnce(&mut R) -> T,
    ) -> Result<T, Error> {
        let key = self.key(key.as_ref())?;
        self.write(&key, |change, found| {
            let (value, then) = match found {
                Some(row) => (self.rewrite(change, row, by), Then::Keep),
                None => {
                    let value = change.run(|| by(&mut new));
                    let then = if value.is_some() { Then::Insert(Made(new)) } else { Then::Keep };
                    (value, then)
                }
            };
            Ok((value.ok_or_else(|| self.nested())?, then))
        })
    }

    /// Removes the row; whether there was one.
    ///
    /// # Errors
    /// As [`update`](Table::update).
    pub fn del(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        Ok(self.take(key.as_ref(), |_| ())?.is_some())
    }

    /// Removes the row, and yields it: nobody else gets the same one.
    ///
    /// # Errors
    /// As [`update`](Table::update).
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<Option<R>, Error> {
        self.take(key.as_ref(), R::load)
    }

    /// Removes the row if it is as `is_it` says, and says whether it did: nobody changes it in between. As for
    /// [`update`](Table::update), the function must be short, and change no row.
    ///
    /// # Errors
    /// As [`update`](Table::update).
    pub fn remove_if(&self, key: impl AsRef<[u8]>, is_it: impl FnOnce(&R) -> bool) -> Result<bool, Error> {
        let key = self.key(key.as_ref())?;
        let mut change = self.change(&key)?;
        let Some(found) = change.find(key).map_err(|bad| self.corrupt(bad))? else { return Ok(false) };
        let row = R::load(Cells(self.store().value(found.row)));
        let removes = change.run(|| is_it(&row)) == Some(true);
        if removes {
            change.remove(found);
            change.commit();
        }
        Ok(removes)
    }

    /// All rows, each as it is at one moment. Those that are there all the time come, once each; those that are inserted or
    /// removed meanwhile come or do not.
    pub fn iter(&self) -> Iter<'_, R> {
        Iter { table: self, bucket: 0, rows: Vec::new().into_iter() }
    }

    /// Repairs at once what dead processes have left, and says of how many locks they were the holders. Whoever meets such a
    /// lock does that by itself; a program that reaps its children can spare others the wait.
    pub fn recover(&self) -> usize {
        self.store().repair_all()
    }

    fn calculate<V: Number>(
        &self,
        key: &[u8],
        column: Column<R, V>,
        by: impl FnOnce(V) -> Option<V>,
    ) -> Result<V, Error> {
        let key = self.key(key)?;
        self.write(&key, |change, found| {
            let of = |cells: Cells<'_>| V::load(cells.part(column.at(), V::WORDS));
            let old = found.map_or(of(Cells(&[])), |row| of(Cells(self.store().value(row))));
            let overflow = || Error::Overflow { table: self.name.clone(), column: column.name() };
            let new = by(old).ok_or_else(overflow)?;
            let then = match found {
                Some(row) => {
                    new.store(&mut |at, word| change.set(row, column.at() + at, word));
                    Then::Keep
                }
                None => Then::Insert(One(column, new)),
            };
            Ok((new, then))
        })
    }

    fn rewrite<T>(&self, change: &mut Change<'_>, row: usize, by: impl FnOnce(&mut R) -> T) -> Option<T> {
        let mut new = R::load(Cells(self.store().value(row)));
        let value = change.run(|| by(&mut new))?;
        new.store(&mut |at, word| change.set(row, at, word));
        Some(value)
    }

    #[inline]
    fn read<T>(&self, key: &[u8], read: impl Fn(Cells<'_>) -> T) -> Result<Option<T>, Error> {
        let (store, key) = (self.store(), self.key(key)?);
        // The first look nearly always sees all. By itself, because a row that is handed from result to result is copied
        // each time, by as many instructions as it takes to find it.
        if let Some(look) = store.look(key.bucket(&self.layout)) {
            match store.find(key) {
                Ok(Some(found)) => {
                    let value = read(Cells(store.value(found.row)));
                    if look.is_true() {
                        return Ok(Some(value));
                    }
                }
                Ok(None) if look.is_true() => return Ok(None),
                _ => {}
            }
        }
        self.read_again(key, read)
    }

    #[cold]
    fn read_again<T>(&self, key: Key<'_>, read: impl Fn(Cells<'_>) -> T) -> Result<Option<T>, Error> {
        let store = self.store();
        let result = store.read(key.bucket(&self.layout), || {
            Ok(store.find(key)?.map(|found| read(Cells(store.value(found.row)))))
        });
        result.map_err(|trouble| self.trouble(trouble))
    }

    /// Changes the row of a key, or makes it.
    #[inline]
    fn write<T, F: Fill>(
        &self,
        key: &Key<'_>,
        act: impl FnOnce(&mut Change<'_>, Option<usize>) -> Result<(T, Then<F>), Error>,
    ) -> Result<T, Error> {
        let mut change = self.change(key)?;
        let found = change.find(*key).map_err(|bad| self.corrupt(bad))?;
        let (value, then) = act(&mut change, found.map(|found| found.row))?;
        if let Then::Insert(fill) = then {
            let mut insert = || change.insert(key, |put| fill.fill(put));
            // A row may be on its way to somebody who has died.
            let done = insert().or_else(|NoneFree| {
                self.store().repair_all();
                insert()
            });
            done.map_err(|NoneFree| Error::Full { table: self.name.clone(), rows: self.layout.rows })?;
        }
        change.commit();
        Ok(value)
    }

    fn take<T>(&self, key: &[u8], read: impl Fn(Cells<'_>) -> T) -> Result<Option<T>, Error> {
        let key = self.key(key)?;
        let mut change = self.change(&key)?;
        let Some(found) = change.find(key).map_err(|bad| self.corrupt(bad))? else { return Ok(None) };
        let value = read(Cells(self.store().value(found.row)));
        change.remove(found);
        change.commit();
        Ok(Some(value))
    }

    #[inline]
    fn change(&self, key: &Key<'_>) -> Result<Change<'_>, Error> {
        self.store().change(key.bucket(&self.layout)).map_err(|Nested| self.nested())
    }

    #[inline]
    fn store(&self) -> Store<'_> {
        Store::new(&self.words, &self.layout)
    }

    #[inline]
    fn key<'k>(&self, bytes: &'k [u8]) -> Result<Key<'k>, Error> {
        let key_max = self.layout.key_max;
        let too_long = || Error::Key { table: self.name.clone(), len: bytes.len(), key_max };
        Key::new(bytes, key_max, self.hashing).ok_or_else(too_long)
    }

    #[cold]
    fn trouble(&self, trouble: Trouble) -> Error {
        match trouble {
            Trouble::BadRow(bad) => self.corrupt(bad),
            Trouble::Nested => self.nested(),
        }
    }

    #[cold]
    fn corrupt(&self, BadRow(row): BadRow) -> Error {
        Error::Corrupt { table: self.name.clone(), row, rows: self.layout.rows }
    }

    #[cold]
    fn nested(&self) -> Error {
        Error::Nested { table: self.name.clone() }
    }
}

/// What both sides must agree upon: a word of the header, its value, and what differs if it does.
fn facts<R: Row>(layout: &Layout, hashing: Hashing) -> [(usize, u64, &'static str); 4] {
    let columns = R::COLUMNS.iter().map(|(name, words)| format!("{name}:{words},"));
    // By a seed of its own, because that of the table is not known when it is compared.
    let schema = Hashing::new(0).hash(columns.collect::<String>().as_bytes());
    [
        (header::ROWS, layout.rows as u64, "rows"),
        (header::KEY_MAX, layout.key_max as u64, "key_max"),
        (header::PROBE, hashing.hash(b"probe"), "hashes"),
        (header::SCHEMA, schema, "columns"),
    ]
}

/// What follows a look at a key's row.
enum Then<F> {
    Keep,
    /// There is none, and shall be one.
    Insert(F),
}

/// What fills the columns of a new row.
trait Fill {
    fn fill(&self, put: &mut dyn FnMut(usize, u64));
}

/// All of them.
struct Whole<'a, R>(&'a R);

/// All of them, of a row that was just made.
struct Made<R>(R);

/// One, while the others stay 0.
struct One<R, V>(Column<R, V>, V);

/// Never made: for operations that make no row.
enum Nothing {}

impl<R: Row> Fill for Whole<'_, R> {
    fn fill(&self, mut put: &mut dyn FnMut(usize, u64)) {
        self.0.store(&mut put);
    }
}

impl<R: Row> Fill for Made<R> {
    fn fill(&self, put: &mut dyn FnMut(usize, u64)) {
        Whole(&self.0).fill(put);
    }
}

impl<R, V: Value> Fill for One<R, V> {
    fn fill(&self, put: &mut dyn FnMut(usize, u64)) {
        self.1.store(&mut |at, word| put(self.0.at() + at, word));
    }
}

impl Fill for Nothing {
    fn fill(&self, _: &mut dyn FnMut(usize, u64)) {
        match *self {}
    }
}

/// An [`Iterator`] over all rows of a [`Table`], with their keys.
///
/// Yields [`Error::Corrupt`], and what the other buckets hold all the same.
pub struct Iter<'a, R> {
    table: &'a Table<R>,
    bucket: usize,
    rows: std::vec::IntoIter<(Vec<u8>, R)>,
}

impl<R: Row> Iterator for Iter<'_, R> {
    type Item = Result<(Vec<u8>, R), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            if self.bucket == self.table.layout.buckets {
                return None;
            }
            let (store, bucket) = (self.table.store(), self.bucket);
            self.bucket += 1;
            let rows = store.read(bucket, || {
                let mut rows = Vec::new();
                store.rows(bucket, |row| rows.push((store.key(row), R::load(Cells(store.value(row))))))?;
                Ok(rows)
            });
            match rows {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(trouble) => return Some(Err(self.table.trouble(trouble))),
            }
        }
    }
}

impl<'a, R: Row> IntoIterator for &'a Table<R> {
    type Item = Result<(Vec<u8>, R), Error>;
    type IntoIter = Iter<'a, R>;

    fn into_iter(self) -> Iter<'a, R> {
        self.iter()
    }
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        let Table { words, layout, hashing, name, of } = self;
        Table { words: words.clone(), layout: layout.clone(), hashing: *hashing, name: name.clone(), of: *of }
    }
}

impl<R> fmt::Debug for Table<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, key_max) = (self.layout.rows, self.layout.key_max);
        f.debug_struct("Table")
            .field("name", &self.name)
            .field("rows", &rows)
            .field("key_max", &key_max)
            .finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for Iter<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// What only tests look at.
#[cfg(test)]
impl<R: Row> Table<R> {
    /// Whether the key's row is in a chain, and whether its bucket has one.
    pub(crate) fn place(&self, key: &str) -> (bool, bool) {
        let key = self.key(key.as_bytes()).expect("a short key");
        self.store().place(&key)
    }

    /// Whether a lock is in this word.
    pub(crate) fn is_lock(&self, at: usize) -> bool {
        (0..self.layout.stripes).any(|stripe| self.layout.stripe(stripe) == at)
    }

    /// Makes the row of each entry the one behind the last.
    pub(crate) fn break_entries(&self) {
        let beyond = self.layout.rows as u64 + 1;
        for at in (0..self.layout.buckets)
            .flat_map(|bucket| self.layout.bucket(bucket)..self.layout.bucket(bucket) + 8)
        {
            let word = self.words[at].load(Ordering::Relaxed);
            if at % 8 >= 2 && word != 0 {
                self.words[at].store(word >> 32 << 32 | beyond, Ordering::Relaxed);
            }
        }
    }
}
