//! What a row is made of: columns, each of one type, each a fixed number of 64-bit words.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use crate::error::TooLong;
use crate::sync::{AtomicU64, Ordering};

/// A row of a [`Table`](crate::Table): what `#[derive(Row)]` implements.
///
/// ```
/// use swoole_table::{Bytes, Row};
///
/// #[derive(Row, Default)]
/// struct Online {
///     uid: u64,
///     name: Bytes<32>,
/// }
///
/// assert_eq!(Online::WORDS, 1 + 1 + 4);
/// ```
pub trait Row: Sized {
    /// Size, in words of 8 bytes.
    const WORDS: usize;

    /// The columns' names and sizes in words, in the order in which they lie.
    const COLUMNS: &'static [(&'static str, usize)];

    /// Makes a row of the words that stand in the table. Any words make one: while a writer is at it they may be a mixture,
    /// and the table throws away what was made of that.
    fn load(cells: Cells<'_>) -> Self;

    /// Puts each of the row's words: its index from 0, and its bits.
    fn store(&self, put: &mut impl FnMut(usize, u64));
}

/// A type that a column can have: integers, floats, `bool`, [`Bytes`].
///
/// To add one, say how it lies in words. Words that are all 0 must be a value: what a column is before anything was set.
/// So must be any other words, see [`Row::load`].
pub trait Value: Sized {
    /// Size, in words of 8 bytes.
    const WORDS: usize;

    /// As [`Row::load`].
    fn load(cells: Cells<'_>) -> Self;

    /// As [`Row::store`].
    fn store(&self, put: &mut impl FnMut(usize, u64));
}

/// A column that can be counted in: integers and floats.
pub trait Number: Value + Copy {
    /// The sum; `None` if the type cannot hold it.
    fn plus(self, other: Self) -> Option<Self>;

    /// The difference; `None` if the type cannot hold it.
    fn minus(self, other: Self) -> Option<Self>;
}

/// The words of a row or a column, where they stand in the table.
#[derive(Clone, Copy)]
pub struct Cells<'a>(pub(crate) &'a [AtomicU64]);

impl<'a> Cells<'a> {
    /// Word `index`; 0 beyond the end.
    #[inline]
    pub fn word(self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// `words` of them from `at` on; none if there are not so many.
    #[inline]
    pub fn part(self, at: usize, words: usize) -> Cells<'a> {
        Cells(self.0.get(at..at + words).unwrap_or_default())
    }
}

impl fmt::Debug for Cells<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..self.0.len()).map(|index| self.word(index))).finish()
    }
}

/// A column of a row type: what [`Table::incr`](crate::Table::incr) and its like take.
///
/// `#[derive(Row)]` makes one for each field, named as the field is, in capitals.
pub struct Column<R, V> {
    at: usize,
    name: &'static str,
    of: PhantomData<fn(R) -> V>,
}

impl<R, V> Column<R, V> {
    /// The column that begins `at` words into the row. For the derive macro: a place where no such column is makes wrong
    /// values, and nothing worse.
    #[doc(hidden)]
    pub const fn new(at: usize, name: &'static str) -> Column<R, V> {
        Column { at, name, of: PhantomData }
    }

    /// The field's name.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Words of the row before it.
    pub(crate) fn at(self) -> usize {
        self.at
    }
}

impl<R, V> Clone for Column<R, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R, V> Copy for Column<R, V> {}

impl<R, V> fmt::Debug for Column<R, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Column").field("name", &self.name).field("at", &self.at).finish()
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            const WORDS: usize = 1;

            #[inline]
            fn load(cells: Cells<'_>) -> $ty {
                cells.word(0) as $ty
            }

            #[inline]
            fn store(&self, put: &mut impl FnMut(usize, u64)) {
                put(0, *self as u64);
            }
        }

        impl Number for $ty {
            #[inline]
            fn plus(self, other: $ty) -> Option<$ty> {
                self.checked_add(other)
            }

            #[inline]
            fn minus(self, other: $ty) -> Option<$ty> {
                self.checked_sub(other)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i8, i16, i32, i64);

macro_rules! floats {
    ($($ty:ty, $bits:ty);*) => {$(
        impl Value for $ty {
            const WORDS: usize = 1;

            #[inline]
            fn load(cells: Cells<'_>) -> $ty {
                <$ty>::from_bits(cells.word(0) as $bits)
            }

            #[inline]
            fn store(&self, put: &mut impl FnMut(usize, u64)) {
                put(0, self.to_bits().into());
            }
        }

        /// IEEE 754 has an answer to everything: infinities and NaN are results as any other.
        impl Number for $ty {
            #[inline]
            fn plus(self, other: $ty) -> Option<$ty> {
                Some(self + other)
            }

            #[inline]
            fn minus(self, other: $ty) -> Option<$ty> {
                Some(self - other)
            }
        }
    )*};
}

floats!(f32, u32; f64, u64);

impl Value for bool {
    const WORDS: usize = 1;

    #[inline]
    fn load(cells: Cells<'_>) -> bool {
        cells.word(0) != 0
    }

    #[inline]
    fn store(&self, put: &mut impl FnMut(usize, u64)) {
        put(0, (*self).into());
    }
}

/// A string of at most `N` bytes, of any content. Takes 8 bytes for its length, and `N` rounded up to 8.
///
/// ```
/// use swoole_table::Bytes;
///
/// let name: Bytes<8> = "amy".parse()?;
/// assert_eq!(&*name, b"amy");
/// assert!(Bytes::<2>::new("amy").is_err(), "nothing is cut off in silence");
/// # Ok::<(), swoole_table::TooLong>(())
/// ```
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize> {
    len: usize,
    bytes: [u8; N],
}

impl<const N: usize> Bytes<N> {
    /// A copy of `bytes`.
    ///
    /// # Errors
    /// [`TooLong`] if they are more than `N`.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Bytes<N>, TooLong> {
        let bytes = bytes.as_ref();
        let mut new = Bytes { len: bytes.len(), bytes: [0; N] };
        let place = new.bytes.get_mut(..bytes.len()).ok_or(TooLong { len: bytes.len(), max: N })?;
        place.copy_from_slice(bytes);
        Ok(new)
    }

    /// As text, if it is UTF-8.
    pub fn to_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(self)
    }
}

impl<const N: usize> Value for Bytes<N> {
    const WORDS: usize = 1 + N.div_ceil(8);

    #[inline]
    fn load(cells: Cells<'_>) -> Bytes<N> {
        // Whatever stands there, no length is beyond the array.
        let mut new = Bytes { len: cells.word(0).min(N as u64) as usize, bytes: [0; N] };
        // Words as a whole, also those behind the end: to look for the end takes longer.
        let (words, rest) = new.bytes.as_chunks_mut::<8>();
        for (index, word) in words.iter_mut().enumerate() {
            *word = cells.word(1 + index).to_le_bytes();
        }
        if !rest.is_empty() {
            let word = cells.word(1 + N / 8).to_le_bytes();
            rest.copy_from_slice(&word[..N % 8]);
        }
        new
    }

    #[inline]
    fn store(&self, put: &mut impl FnMut(usize, u64)) {
        put(0, self.len as u64);
        let (words, rest) = self.bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            put(1 + index, u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..N % 8].copy_from_slice(rest);
            put(1 + N / 8, u64::from_le_bytes(word));
        }
    }
}

impl<const N: usize> Default for Bytes<N> {
    fn default() -> Self {
        Bytes { len: 0, bytes: [0; N] }
    }
}

impl<const N: usize> Deref for Bytes<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<const N: usize> AsRef<[u8]> for Bytes<N> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<const N: usize> std::str::FromStr for Bytes<N> {
    type Err = TooLong;

    fn from_str(text: &str) -> Result<Self, TooLong> {
        Bytes::new(text)
    }
}

impl<const N: usize> PartialEq for Bytes<N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<const N: usize> Eq for Bytes<N> {}

impl<const N: usize> PartialEq<str> for Bytes<N> {
    fn eq(&self, other: &str) -> bool {
        **self == *other.as_bytes()
    }
}

impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}
