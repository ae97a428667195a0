//! Who is subscribed to what, of one reactor's clients. Pure.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use crate::session::Session;

#[derive(Debug)]
pub(super) struct Topics {
    members: HashMap<Rc<[u8]>, BTreeSet<Session>>,
    of: HashMap<Session, Own>,
    /// Topics that one client may be subscribed to.
    max: usize,
}

/// What one client is subscribed to.
#[derive(Debug, Default)]
struct Own {
    topics: BTreeSet<Rc<[u8]>>,
    /// It was to have more than it may.
    refused: bool,
}

/// What became of a subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Subscribed {
    Yes,
    /// It has as many as it may, and this is the first time that it wants more.
    Refused,
    RefusedAgain,
}

impl Topics {
    pub(super) fn new(max: usize) -> Topics {
        Topics { members: HashMap::new(), of: HashMap::new(), max }
    }

    pub(super) fn subscribe(&mut self, session: Session, topic: &[u8]) -> Subscribed {
        let own = self.of.entry(session).or_default();
        if own.topics.contains(topic) {
            return Subscribed::Yes;
        }
        if own.topics.len() >= self.max {
            let before = std::mem::replace(&mut own.refused, true);
            return if before { Subscribed::RefusedAgain } else { Subscribed::Refused };
        }
        let name =
            self.members.get_key_value(topic).map_or_else(|| topic.into(), |(name, _)| Rc::clone(name));
        own.topics.insert(Rc::clone(&name));
        self.members.entry(name).or_default().insert(session);
        Subscribed::Yes
    }

    pub(super) fn unsubscribe(&mut self, session: Session, topic: &[u8]) {
        let Some(own) = self.of.get_mut(&session) else { return };
        if !own.topics.remove(topic) {
            return;
        }
        if own.topics.is_empty() {
            self.of.remove(&session);
        }
        self.leave(session, topic);
    }

    fn leave(&mut self, session: Session, topic: &[u8]) {
        if let Some(members) = self.members.get_mut(topic) {
            members.remove(&session);
            if members.is_empty() {
                self.members.remove(topic);
            }
        }
    }

    /// It is gone: what it was subscribed to.
    pub(super) fn forget(&mut self, session: Session) -> Vec<Rc<[u8]>> {
        let own = self.of.remove(&session).unwrap_or_default().topics;
        own.iter().for_each(|topic| self.leave(session, topic));
        own.into_iter().collect()
    }

    /// Those that are subscribed to this topic.
    pub(super) fn members(&self, topic: &[u8]) -> impl Iterator<Item = Session> + '_ {
        self.members.get(topic).into_iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Act {
        Subscribe(u64, u8),
        Unsubscribe(u64, u8),
        Forget(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (1..6_u64, 0..4_u8).prop_map(|(session, topic)| Act::Subscribe(session, topic)),
            2 => (1..6_u64, 0..4_u8).prop_map(|(session, topic)| Act::Unsubscribe(session, topic)),
            1 => (1..6_u64).prop_map(Act::Forget),
        ]
    }

    proptest! {
        #[test]
        fn both_ways_say_the_same_and_nothing_is_left(acts in proptest::collection::vec(act(), 0..60)) {
            let (mut topics, mut model) = (Topics::new(4), BTreeSet::new());
            for act in acts {
                match act {
                    Act::Subscribe(session, topic) => {
                        prop_assert_eq!(topics.subscribe(Session::from_raw(session), &[topic]), Subscribed::Yes);
                        model.insert((session, topic));
                    }
                    Act::Unsubscribe(session, topic) => {
                        topics.unsubscribe(Session::from_raw(session), &[topic]);
                        model.remove(&(session, topic));
                    }
                    Act::Forget(session) => {
                        let had = topics.forget(Session::from_raw(session));
                        let had: Vec<u8> = had.iter().map(|topic| topic[0]).collect();
                        let expected: Vec<u8> =
                            model.iter().filter(|(whose, _)| *whose == session).map(|(_, topic)| *topic).collect();
                        prop_assert_eq!(had, expected);
                        model.retain(|(whose, _)| *whose != session);
                    }
                }
                for topic in 0..4 {
                    let members: Vec<u64> = topics.members(&[topic]).map(Session::raw).collect();
                    let expected: Vec<u64> =
                        model.iter().filter(|(_, its)| *its == topic).map(|(session, _)| *session).collect();
                    prop_assert_eq!(members, expected);
                }
                let used: BTreeSet<u8> = model.iter().map(|(_, topic)| *topic).collect();
                let sessions: BTreeSet<u64> = model.iter().map(|(session, _)| *session).collect();
                prop_assert_eq!(topics.members.len(), used.len());
                prop_assert_eq!(topics.of.len(), sessions.len());
            }
        }
    }

    #[test]
    fn one_client_cannot_fill_the_memory() {
        let (mut topics, session) = (Topics::new(3), Session::from_raw(7));
        for topic in [b"a", b"b", b"c", b"a"] {
            assert_eq!(topics.subscribe(session, topic), Subscribed::Yes);
        }
        assert_eq!(topics.subscribe(session, b"one more"), Subscribed::Refused);
        assert_eq!(topics.subscribe(session, b"another"), Subscribed::RefusedAgain);
        assert_eq!(topics.subscribe(Session::from_raw(8), b"one more"), Subscribed::Yes);
        topics.unsubscribe(session, b"a");
        assert_eq!(topics.subscribe(session, b"one more"), Subscribed::Yes);
    }
}
