//! What a task is: bytes, or whatever becomes bytes.

use std::borrow::Cow;

use super::TaskResult;
use crate::error::Result;

/// What can be asked of task workers ([`Worker::task`](crate::Worker::task)): bytes and text as they are, and with the
/// feature `typed` every `typed::Job`. For another encoding, implement it yourself.
pub trait Payload {
    /// What comes of it.
    type Output;

    /// The bytes that [`Handler::on_task`](crate::Handler::on_task) gets.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`](crate::Error::Encode) if it cannot be made bytes of.
    fn encode(&self) -> Result<Cow<'_, [u8]>>;

    /// Reads what `on_task` has returned: `result.and_then(Resize::output)` in
    /// [`on_finish`](crate::Handler::on_finish).
    ///
    /// # Errors
    ///
    /// [`TaskError::Undecodable`](crate::TaskError::Undecodable) if it is something else.
    fn output(result: Vec<u8>) -> TaskResult<Self::Output>;
}

macro_rules! as_they_are {
    ($([$($parameter:tt)*] $bytes:ty),*) => {
        $(impl<$($parameter)*> Payload for $bytes {
            type Output = Vec<u8>;

            #[inline]
            fn encode(&self) -> Result<Cow<'_, [u8]>> {
                Ok(Cow::Borrowed(self.as_ref()))
            }

            #[inline]
            fn output(result: Vec<u8>) -> TaskResult {
                Ok(result)
            }
        })*
    };
}

as_they_are!([] [u8], [const N: usize] [u8; N], [] Vec<u8>, [] str, [] String);
