//! What a worker writes to other processes.

use super::Worker;
use crate::error::Result;
use crate::post::Peer;

impl Worker<'_> {
    /// Sends a message to a worker, this one included, or to a task worker: whichever process is in that slot when it comes
    /// is called back, [`on_pipe_message`](crate::Handler::on_pipe_message) or
    /// [`on_task_worker_pipe_message`](crate::Handler::on_task_worker_pipe_message), after all that this process has sent to
    /// it before. It leaves when the present callback returns, or [flushes](Worker::flush).
    ///
    /// `message` is any bytes, up to 1 GiB. Does not wait for its receiver: what that does not take is kept here, up to
    /// `socket_buffer_size`, though a longer one may be sent as long as none waits. Messages are for what may be lost with a process: with the
    /// sender goes what it has kept, with the receiver what it has in hand and what has come in part; what lies between
    /// them is the successor's. Who may not lose anything asks for a [task](Worker::task) and hears of its end.
    ///
    /// Swoole: `sendMessage`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPeer`](crate::Error::NoSuchPeer) if there is no such slot;
    /// [`Error::PeerFull`](crate::Error::PeerFull) if it has not taken what was sent to it before;
    /// [`Error::MessageTooLong`](crate::Error::MessageTooLong). Nothing was sent then.
    pub fn send_message(&mut self, to: Peer, message: &[u8]) -> Result<()> {
        self.duty.post.sender.message(to, message)
    }
}
