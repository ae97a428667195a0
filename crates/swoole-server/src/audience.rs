//! What concerns many clients at once: broadcasts, and the topics that clients are subscribed to.
//!
//! Whoever broadcasts tells each reactor once, and that sends to those of its own clients who are meant. An order, as it
//! travels in a ring or by post, little-endian:
//! `kind: u8 | length of the topic: u8 | 0: u16 | listener or 0xffff_ffff: u32 | session: u64 | topic | bytes`.

use crate::error::{Error, Result};
use crate::session::Session;

/// Bytes of the longest name of a topic.
pub(crate) const TOPIC_MAX: usize = u8::MAX as usize;

const HEAD: usize = 16;
/// Bytes of an order that stand before those for clients, at most.
pub(crate) const ORDER_HEAD_MAX: usize = HEAD + TOPIC_MAX;
const ANY_LISTENER: u32 = u32::MAX;

const BROADCAST: u8 = 1;
const SUBSCRIBE: u8 = 2;
const UNSUBSCRIBE: u8 = 3;

/// Whom a [broadcast](crate::Worker::broadcast) is for: all clients, or those that are subscribed to a topic; of those
/// perhaps only some.
///
/// ```
/// # use swoole_server::{Audience, Session};
/// # fn example(author: Session) -> Audience<'static> {
/// Audience::topic("news").except(author)
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audience<'a> {
    topic: Option<&'a [u8]>,
    except: Option<Session>,
    listener: Option<u16>,
}

impl<'a> Audience<'a> {
    /// All clients.
    pub fn all() -> Audience<'static> {
        Audience::default()
    }

    /// Those that are [subscribed](crate::Worker::subscribe) to this topic.
    pub fn topic<T: AsRef<[u8]> + ?Sized>(topic: &'a T) -> Audience<'a> {
        Audience { topic: Some(topic.as_ref()), ..Audience::default() }
    }

    /// But not this one.
    #[must_use]
    pub fn except(self, session: Session) -> Audience<'a> {
        Audience { except: Some(session), ..self }
    }

    /// Only those that have come in by this listener, by its place among the [addresses](crate::Worker::addresses).
    #[must_use]
    pub fn listener(self, listener: u16) -> Audience<'a> {
        Audience { listener: Some(listener), ..self }
    }

    /// Whether this one is meant, if it is subscribed to the topic.
    pub(crate) fn has(&self, session: Session, listener: impl FnOnce() -> Option<u16>) -> bool {
        self.except != Some(session) && self.listener.is_none_or(|wanted| listener() == Some(wanted))
    }

    pub(crate) fn its_topic(&self) -> Option<&'a [u8]> {
        self.topic
    }
}

/// What a reactor is to do for many of its clients, or for one's topics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order<'a> {
    Broadcast(Audience<'a>, &'a [u8]),
    Subscribe(Session, &'a [u8]),
    Unsubscribe(Session, &'a [u8]),
}

impl<'a> Order<'a> {
    /// Says nothing that cannot be said.
    pub(crate) fn check(&self, max: usize) -> Result<()> {
        let topic = match self {
            Order::Broadcast(audience, _) => audience.topic,
            Order::Subscribe(_, topic) | Order::Unsubscribe(_, topic) => Some(*topic),
        };
        if let Some(len) = topic.map(<[u8]>::len).filter(|len| !(1..=TOPIC_MAX).contains(len)) {
            return Err(Error::TopicLength { len, max: TOPIC_MAX });
        }
        match self {
            Order::Broadcast(_, bytes) if bytes.len() > max => {
                Err(Error::BroadcastTooLong { len: bytes.len(), max })
            }
            _ => Ok(()),
        }
    }

    /// Bytes of it, about.
    pub(crate) fn len(&self) -> usize {
        let bytes = if let Order::Broadcast(_, bytes) = self { bytes.len() } else { 0 };
        ORDER_HEAD_MAX + bytes
    }

    /// The same in several orders that are at most so long each, unless `max` is less than what stands before the bytes and
    /// one more.
    pub(crate) fn encode(&self, max: usize) -> impl Iterator<Item = Vec<u8>> + use<'a> {
        let (kind, topic, listener, session, bytes) = match *self {
            Order::Broadcast(Audience { topic, except, listener }, bytes) => {
                let except = except.map_or(0, Session::raw);
                let listener = listener.map_or(ANY_LISTENER, u32::from);
                (BROADCAST, topic.unwrap_or_default(), listener, except, bytes)
            }
            Order::Subscribe(session, topic) => (SUBSCRIBE, topic, ANY_LISTENER, session.raw(), &[][..]),
            Order::Unsubscribe(session, topic) => (UNSUBSCRIBE, topic, ANY_LISTENER, session.raw(), &[][..]),
        };
        let mut head = vec![kind, topic.len() as u8, 0, 0];
        head.extend(listener.to_le_bytes());
        head.extend(session.to_le_bytes());
        head.extend(topic);
        let piece = max.saturating_sub(head.len()).max(1);
        // One without bytes is an order, too.
        let pieces = bytes.len().div_ceil(piece).max(1);
        (0..pieces).map(move |number| {
            let piece = &bytes[number * piece..bytes.len().min((number + 1) * piece)];
            [&head, piece].concat()
        })
    }

    /// `None` for what nobody writes.
    pub(crate) fn decode(order: &'a [u8]) -> Option<Order<'a>> {
        let (head, rest) = order.split_first_chunk::<HEAD>()?;
        let [kind, topic_len, 0, 0, a, b, c, d, session @ ..] = *head else { return None };
        let (topic, bytes) = rest.split_at_checked(topic_len.into())?;
        let (listener, session) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(session));
        let is_alone = listener == ANY_LISTENER && bytes.is_empty() && !topic.is_empty();
        match kind {
            BROADCAST => {
                let one = u16::try_from(listener).ok();
                if one.is_none() && listener != ANY_LISTENER {
                    return None;
                }
                let audience = Audience {
                    topic: (!topic.is_empty()).then_some(topic),
                    except: (session != 0).then_some(Session::from_raw(session)),
                    listener: one,
                };
                Some(Order::Broadcast(audience, bytes))
            }
            SUBSCRIBE if is_alone => Some(Order::Subscribe(Session::from_raw(session), topic)),
            UNSUBSCRIBE if is_alone => Some(Order::Unsubscribe(Session::from_raw(session), topic)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_order_arrives_as_it_was_given_in_however_many_pieces(
            topic in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..=TOPIC_MAX)),
            except in proptest::option::of(1..u64::MAX),
            listener: Option<u16>,
            bytes: Vec<u8>,
            max in 1..400_usize,
        ) {
            let except = except.map(Session::from_raw);
            let audience = Audience { topic: topic.as_deref(), except, listener };
            let order = Order::Broadcast(audience, &bytes);
            prop_assert!(order.check(bytes.len()).is_ok());
            prop_assert_eq!(order.check(bytes.len().saturating_sub(1)).is_ok(), bytes.is_empty());
            let mut came = Vec::new();
            for piece in order.encode(max) {
                prop_assert!(piece.len() <= max.max(HEAD + topic.as_ref().map_or(0, Vec::len) + 1));
                let Some(Order::Broadcast(its, part)) = Order::decode(&piece) else {
                    return Err(TestCaseError::fail("not a broadcast"));
                };
                prop_assert_eq!(its, audience);
                came.extend_from_slice(part);
            }
            prop_assert_eq!(came, bytes);
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same(order in proptest::collection::vec(prop_oneof![Just(0), 0..4_u8, any::<u8>()], 0..60)) {
            if let Some(decoded) = Order::decode(&order) {
                prop_assert_eq!(decoded.encode(usize::MAX).collect::<Vec<_>>(), [order.clone()]);
            }
        }
    }

    #[test]
    fn topics_have_names() {
        let session = Session::from_raw(9);
        for topic in [&b"x"[..], &[0; TOPIC_MAX]] {
            for order in [Order::Subscribe(session, topic), Order::Unsubscribe(session, topic)] {
                order.check(0).unwrap();
                let encoded: Vec<_> = order.encode(usize::MAX).collect();
                assert_eq!(
                    encoded.iter().map(|order| Order::decode(order)).collect::<Vec<_>>(),
                    [Some(order)]
                );
            }
        }
        for topic in [&b""[..], &[0; TOPIC_MAX + 1]] {
            let error = Order::Subscribe(session, topic).check(0).unwrap_err();
            assert!(matches!(error, Error::TopicLength { .. }), "{error}");
            assert!(Order::Broadcast(Audience::topic(topic), b"").check(0).is_err());
        }
    }

    #[test]
    fn who_is_meant() {
        let [one, other] = [1, 2].map(Session::from_raw);
        let via = |listener| move || Some(listener);
        assert!(Audience::all().has(one, || unreachable!()));
        assert!(
            !Audience::all().except(one).has(one, via(0)) && Audience::all().except(one).has(other, via(0))
        );
        let second = Audience::all().listener(1);
        assert!(second.has(one, via(1)) && !second.has(one, via(0)) && !second.has(one, || None));
    }
}
