//! Packets that say their length in a header.

use crate::{ConfigError, Cut, FrameError, LengthType, Malformed};

/// The largest `package_length_offset` and `package_body_offset`, in bytes.
pub const OFFSET_MAX: usize = u16::MAX as usize;

/// Where a packet says how long it is: `package_length_type`, `package_length_offset` and `package_body_offset`.
///
/// A packet has `value + body_offset` bytes in total, where `value` is the number in its length field. So with a
/// 4-byte field at offset 0, `body_offset` is 4 if the field counts what follows it, and 0 if it counts itself too.
///
/// The user sees the whole packet, header included, as with Swoole: the header may say more than the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthOptions {
    kind: LengthType,
    length_offset: u16,
    body_offset: u16,
}

/// Swoole's defaults: type `N` (32 bits, network order) at offset 0, body at 4.
impl Default for LengthOptions {
    fn default() -> LengthOptions {
        LengthOptions { kind: LengthType::U32Be, length_offset: 0, body_offset: 4 }
    }
}

impl LengthOptions {
    /// A length field of type `kind`, `length_offset` bytes into the packet, that does not count the packet's first
    /// `body_offset` bytes. Both offsets go from 0 to [`OFFSET_MAX`].
    ///
    /// # Errors
    /// [`ConfigError::Offset`] names the one that is larger.
    pub fn new(
        kind: LengthType,
        length_offset: usize,
        body_offset: usize,
    ) -> Result<LengthOptions, ConfigError> {
        let checked = |option, value| u16::try_from(value).map_err(|_| ConfigError::Offset { option, value });
        Ok(LengthOptions {
            kind,
            length_offset: checked("package_length_offset", length_offset)?,
            body_offset: checked("package_body_offset", body_offset)?,
        })
    }

    /// The type of the length field.
    pub fn kind(&self) -> LengthType {
        self.kind
    }

    /// Bytes before the length field.
    pub fn length_offset(&self) -> usize {
        self.length_offset.into()
    }

    /// Bytes of a packet that its length field does not count.
    pub fn body_offset(&self) -> usize {
        self.body_offset.into()
    }

    /// Bytes up to the end of the length field: what must be there before a packet's length is known, and the least
    /// that a packet can have.
    pub fn header_len(&self) -> usize {
        self.length_offset() + self.kind.size()
    }

    pub(crate) fn cut(&self, input: &[u8], max: usize) -> Result<Cut, FrameError> {
        let header = self.header_len();
        let Some(field) = input.get(self.length_offset()..header) else {
            return Ok(Cut::More { at_least: header - input.len() });
        };
        let value = self.kind.decode(field).map_err(|what| FrameError::Malformed { what })?;
        let len = usize::try_from(value).unwrap_or(usize::MAX).saturating_add(self.body_offset());
        if len < header {
            return Err(FrameError::Malformed { what: Malformed::ShorterThanHeader { total: len, header } });
        }
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(match len.checked_sub(input.len()) {
            None | Some(0) => Cut::Packet { len, payload: 0..len },
            Some(at_least) => Cut::More { at_least },
        })
    }

    pub(crate) fn encode(&self, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        let front = self.header_len().max(self.body_offset());
        let value = (front - self.body_offset() + body.len()) as u64;
        if value > self.kind.max() {
            let max =
                usize::try_from(self.kind.max()).unwrap_or(usize::MAX).saturating_add(self.body_offset());
            return Err(FrameError::TooLong { len: front + body.len(), max });
        }
        out.resize(start + front, 0);
        self.kind.encode(value, &mut out[start + self.length_offset()..start + self.header_len()]);
        out.extend_from_slice(body);
        Ok(())
    }
}
