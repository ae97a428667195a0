//! What a worker does for many clients at once.

use super::{Way, Worker};
use crate::audience::{Audience, Order};
use crate::error::Result;
use crate::session::Session;

impl Worker<'_> {
    /// Sends `bytes` to many clients, whichever reactors or workers they belong to: each reactor is told once, and sends to
    /// those of its own clients who are meant. For each of them it comes after all that this worker has sent to it before,
    /// and as for [`send`](Worker::send), when the callback returns or at [`flush`](Worker::flush). Who is connected, and
    /// subscribed, by then gets it; who falls too far behind is closed.
    ///
    /// ```
    /// # use swoole_server::{Audience, Result, Session, Worker};
    /// # fn example(worker: &mut Worker, author: Session) -> Result<()> {
    /// worker.broadcast(Audience::all(), b"the server is updated\n")?;
    /// worker.broadcast(Audience::topic("cats").except(author), b"meow\n")
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::BroadcastTooLong`](crate::Error::BroadcastTooLong) if `bytes` exceed `socket_buffer_size`;
    /// [`Error::TopicLength`](crate::Error::TopicLength); [`Error::Uncommitted`](crate::Error::Uncommitted) as for
    /// [`send`](Worker::send); [`Error::PeerFull`](crate::Error::PeerFull) in Base mode, if another worker has not taken what
    /// this one has sent before: then nobody gets it.
    pub fn broadcast(&mut self, audience: Audience<'_>, bytes: &[u8]) -> Result<()> {
        let order = Order::Broadcast(audience, bytes);
        order.check(self.shared().config.socket_buffer_size)?;
        match &mut self.way {
            Way::Links(outlets) => outlets.order_all(&order)?,
            Way::Own(till) => {
                self.duty.post.sender.order_all(&order, Some(till.id()))?;
                till.order(&order);
            }
        }
        Ok(())
    }

    /// Sends `bytes` to those who are subscribed to a topic, as [`broadcast`](Worker::broadcast) to
    /// [`Audience::topic`].
    ///
    /// # Errors
    ///
    /// As for [`broadcast`](Worker::broadcast).
    pub fn publish(&mut self, topic: impl AsRef<[u8]>, bytes: &[u8]) -> Result<()> {
        self.broadcast(Audience::topic(&topic), bytes)
    }

    /// Subscribes a client to a topic, any 1 to 255 bytes: it gets what is [published](Worker::publish) there by whatever
    /// process, after this, until it is [unsubscribed](Worker::unsubscribe) or gone. Its reactor keeps that, so the worker may
    /// die or be replaced. A client that is subscribed already stays so. One can have
    /// [`max_subscription`](crate::Config::max_subscription) of them; what goes beyond is logged, and no more.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if it is not connected;
    /// [`Error::TopicLength`](crate::Error::TopicLength); [`Error::PeerFull`](crate::Error::PeerFull) as for
    /// [`send`](Worker::send).
    pub fn subscribe(&mut self, session: Session, topic: impl AsRef<[u8]>) -> Result<()> {
        self.order(session, &Order::Subscribe(session, topic.as_ref()))
    }

    /// Ends a subscription, if there is one.
    ///
    /// # Errors
    ///
    /// As for [`subscribe`](Worker::subscribe).
    pub fn unsubscribe(&mut self, session: Session, topic: impl AsRef<[u8]>) -> Result<()> {
        self.order(session, &Order::Unsubscribe(session, topic.as_ref()))
    }

    /// To the reactor of this session.
    fn order(&mut self, session: Session, order: &Order<'_>) -> Result<()> {
        order.check(0)?;
        let reactor = self.reactor(session)?;
        match &mut self.way {
            Way::Links(outlets) => outlets.to(reactor).order(order)?,
            Way::Own(till) if till.id() == reactor => till.order(order),
            Way::Own(_) => self.duty.post.sender.order(reactor, order)?,
        }
        Ok(())
    }
}
