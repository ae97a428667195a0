//! What users may do with clients in a process that has no link to their reactors.

/// Needs `post(&mut self) -> &mut Sender` and `shared(&self) -> &Arc<Shared>`.
macro_rules! posts {
    ($role:ty) => {
        impl $role {
            /// Sends `bytes` to a client, whichever reactor or worker it belongs to, after all that this process has sent to
            /// it before. It leaves at once: if the process dies in the same callback, it has been sent all the same.
            ///
            /// Does not wait for the client: what it does not take is kept for it, up to `socket_buffer_size`; a client that
            /// falls further behind is closed.
            ///
            /// # Errors
            ///
            /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if the client has left.
            /// [`Error::ReplyTooLong`](crate::Error::ReplyTooLong) if `bytes` alone exceed `socket_buffer_size`.
            /// [`Error::PeerFull`](crate::Error::PeerFull) if the reactor that owns the client, in Base mode the worker, has
            /// not taken what this process has sent before. Nothing was sent then.
            pub fn send(&mut self, session: crate::Session, bytes: &[u8]) -> Result<()> {
                self.shared().check_reply(session, bytes.len())?;
                self.post_to(session, |sender, reactor| sender.send(reactor, session, bytes))
            }

            /// Sends a datagram, see [`Worker::send_to`](crate::Worker::send_to). It leaves at once. In Base mode one worker
            /// sends it for this process, the same for all datagrams of a listener.
            ///
            /// # Errors
            ///
            /// As for [`Worker::send_to`](crate::Worker::send_to), and [`Error::PeerFull`](crate::Error::PeerFull) as for
            /// [`send`](Self::send).
            pub fn send_to(&mut self, to: &crate::DatagramClient, bytes: &[u8]) -> Result<()> {
                let datagram = crate::datagram::answer(self.shared().listening().addresses(), to, bytes)?;
                self.post_now(|sender| sender.send_to(to.listener, &datagram))
            }

            /// Closes a client's connection, after what was sent to it before has gone out.
            ///
            /// # Errors
            ///
            /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if it is gone already;
            /// [`Error::PeerFull`](crate::Error::PeerFull) as for [`send`](Self::send).
            pub fn close(&mut self, session: crate::Session) -> Result<()> {
                self.post_to(session, |sender, reactor| sender.close(reactor, session))
            }

            /// Sends `bytes` to many clients, see [`Worker::broadcast`](crate::Worker::broadcast). It leaves at once.
            ///
            /// # Errors
            ///
            /// As for [`Worker::broadcast`](crate::Worker::broadcast).
            pub fn broadcast(&mut self, audience: crate::Audience<'_>, bytes: &[u8]) -> Result<()> {
                let order = crate::audience::Order::Broadcast(audience, bytes);
                order.check(self.shared().config.socket_buffer_size)?;
                self.post_now(|sender| sender.order_all(&order, None))
            }

            /// Sends `bytes` to those who are subscribed to a topic.
            ///
            /// # Errors
            ///
            /// As for [`Worker::broadcast`](crate::Worker::broadcast).
            pub fn publish(&mut self, topic: impl AsRef<[u8]>, bytes: &[u8]) -> Result<()> {
                self.broadcast(crate::Audience::topic(&topic), bytes)
            }

            /// Subscribes a client to a topic, see [`Worker::subscribe`](crate::Worker::subscribe).
            ///
            /// # Errors
            ///
            /// As for [`Worker::subscribe`](crate::Worker::subscribe).
            pub fn subscribe(&mut self, session: crate::Session, topic: impl AsRef<[u8]>) -> Result<()> {
                self.order(session, &crate::audience::Order::Subscribe(session, topic.as_ref()))
            }

            /// Ends a subscription, see [`Worker::unsubscribe`](crate::Worker::unsubscribe).
            ///
            /// # Errors
            ///
            /// As for [`Worker::subscribe`](crate::Worker::subscribe).
            pub fn unsubscribe(&mut self, session: crate::Session, topic: impl AsRef<[u8]>) -> Result<()> {
                self.order(session, &crate::audience::Order::Unsubscribe(session, topic.as_ref()))
            }

            fn order(&mut self, session: crate::Session, order: &crate::audience::Order<'_>) -> Result<()> {
                order.check(0)?;
                self.post_to(session, |sender, reactor| sender.order(reactor, order))
            }

            /// Binds a client's session to a user; see [`Worker::bind`](crate::Worker::bind). It takes effect when the
            /// reactor that owns the client comes to it.
            ///
            /// # Errors
            ///
            /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if the client has left;
            /// [`Error::PeerFull`](crate::Error::PeerFull) as for [`send`](Self::send).
            pub fn bind(&mut self, session: crate::Session, uid: u64) -> Result<()> {
                self.post_to(session, |sender, reactor| sender.bind(reactor, session, uid))
            }

            /// Binds a client's session to nobody.
            ///
            /// # Errors
            ///
            /// As for [`bind`](Self::bind).
            pub fn unbind(&mut self, session: crate::Session) -> Result<()> {
                self.bind(session, 0)
            }

            /// Reads nothing more from a client; see [`Worker::pause`](crate::Worker::pause). Like all that is sent from here
            /// it leaves at once.
            ///
            /// # Errors
            ///
            /// As for [`close`](Self::close).
            pub fn pause(&mut self, session: crate::Session) -> Result<()> {
                self.measure(session, crate::measure::Measure::Pause)
            }

            /// Reads from a client again; see [`Worker::resume`](crate::Worker::resume).
            ///
            /// # Errors
            ///
            /// As for [`close`](Self::close).
            pub fn resume(&mut self, session: crate::Session) -> Result<()> {
                self.measure(session, crate::measure::Measure::Resume)
            }

            /// Reads from a client for the first time; see [`Worker::confirm`](crate::Worker::confirm).
            ///
            /// # Errors
            ///
            /// As for [`close`](Self::close).
            pub fn confirm(&mut self, session: crate::Session) -> Result<()> {
                self.resume(session)
            }

            /// Exempts a client from limits on its silence; see [`Worker::protect`](crate::Worker::protect).
            ///
            /// # Errors
            ///
            /// As for [`close`](Self::close).
            pub fn protect(&mut self, session: crate::Session, on: bool) -> Result<()> {
                self.measure(session, crate::measure::Measure::Protect(on))
            }

            /// Closes a client's connection at once, with a reset; see [`Worker::reset`](crate::Worker::reset).
            ///
            /// # Errors
            ///
            /// As for [`close`](Self::close).
            pub fn reset(&mut self, session: crate::Session) -> Result<()> {
                self.measure(session, crate::measure::Measure::Reset)
            }

            fn measure(&mut self, session: crate::Session, measure: crate::measure::Measure) -> Result<()> {
                self.post_to(session, |sender, reactor| sender.measure(reactor, session, measure))
            }

            /// Sends a message to a worker or a task worker, after all that this process has sent to it before; see
            /// [`Worker::send_message`](crate::Worker::send_message). It leaves at once.
            ///
            /// # Errors
            ///
            /// As for [`Worker::send_message`](crate::Worker::send_message).
            pub fn send_message(&mut self, to: crate::Peer, message: &[u8]) -> Result<()> {
                self.post_now(|sender| sender.message(to, message))
            }

            /// Posts something to the reactor of this session.
            fn post_to(
                &mut self,
                session: crate::Session,
                put: impl FnOnce(&mut crate::post::Sender, u16) -> Result<()>,
            ) -> Result<()> {
                let reactor = self.shared().sessions.owner(session)?;
                self.post_now(|sender| put(sender, reactor))
            }

            fn post_now(&mut self, put: impl FnOnce(&mut crate::post::Sender) -> Result<()>) -> Result<()> {
                let sender = self.post();
                put(sender)?;
                sender.pump();
                Ok(())
            }
        }

        crate::post::role::clients!($role);
    };
}
pub(crate) use posts;

/// What may be known of clients.
macro_rules! clients {
    ($role:ty) => {
        impl $role {
            /// Whether the session is connected.
            pub fn exists(&self, session: crate::Session) -> bool {
                self.shared().sessions.exists(session)
            }

            /// What is known of a session, read from shared memory, which costs nobody else anything. Swoole:
            /// `getClientInfo()`.
            ///
            /// # Errors
            ///
            /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if it is not connected.
            pub fn session(&self, session: crate::Session) -> Result<crate::SessionInfo> {
                self.shared().sessions.info(session)
            }

            /// What is known of the TLS of a session: version, cipher, names, the client's certificate; read from shared
            /// memory like [`session`](Self::session), in all processes alike. `None` if it came by an address without TLS.
            /// Swoole: what `getClientInfo()` says of certificates.
            ///
            /// # Errors
            ///
            /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if it is not connected.
            pub fn tls(&self, session: crate::Session) -> Result<Option<crate::TlsInfo>> {
                let shared = self.shared();
                shared.sessions.owner(session)?;
                Ok(shared.tls_infos.info(&shared.sessions, session))
            }

            /// The next page of the server's sessions: up to `count` of them, after the last one of the page before (`None` for
            /// the first page). A session that is connected all the while is in exactly one page, whatever comes and goes
            /// meanwhile, `after` included. An empty page is the end. Swoole: `getClientList()`.
            pub fn sessions_after(&self, after: Option<crate::Session>, count: usize) -> Vec<crate::Session> {
                self.shared().sessions.iter_after(after).take(count).collect()
            }

            /// Every session of the server. Those that come or go meanwhile may or may not be among them.
            pub fn sessions(&self) -> impl Iterator<Item = crate::Session> + '_ {
                self.shared().sessions.iter()
            }
        }
    };
}
pub(crate) use clients;
