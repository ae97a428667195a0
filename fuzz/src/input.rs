//! Reading an input.

/// An input, read from its front: so a seed can be written by hand, and a stream in it lies in one piece. Numbers are
/// little-endian; what lies behind the end is zeros.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// What the fuzzer gave.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next so many bytes, fewer at the end.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        let mut array = [0; N];
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A number of 8 bits.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number for a word that means something near `around`. The first byte says how: 0 a distance of 16 bits in
    /// words, 1 the same in bytes, 2 any 64 bits, 3 one of the numbers where arithmetic goes wrong.
    pub fn near(&mut self, around: u64) -> u64 {
        const EXTREMES: [u64; 8] =
            [0, u64::MAX, u64::MAX - 7, 1 << 63, 1 << 62, (1 << 62) - 8, u32::MAX as u64, 1 << 32];
        match self.u8() % 4 {
            0 => around.wrapping_add_signed(i64::from(self.u16().cast_signed()) * 8),
            1 => around.wrapping_add_signed(self.u16().cast_signed().into()),
            2 => self.u64(),
            _ => EXTREMES[usize::from(self.u8()) % EXTREMES.len()],
        }
    }
}

/// A stream and how it arrives: the limit less 1 (u16, modulo 1024, so small that streams reach it), the number of
/// reads (u8), the size of each (u8), the stream.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The `package_max_length`.
    pub max: usize,
    /// The sizes of the reads; what is left of the stream comes in one more.
    pub sizes: Vec<usize>,
    /// All bytes.
    pub stream: &'a [u8],
}

impl<'a> Arrival<'a> {
    /// Takes all that is left of an input.
    pub fn new(mut input: Input<'a>) -> Self {
        let max = usize::from(input.u16() % 1024) + 1;
        let reads = input.u8().into();
        let sizes = input.take(reads).iter().copied().map(usize::from).collect();
        Self { max, sizes, stream: input.rest() }
    }
}
