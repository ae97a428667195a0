//! The store against a model, with askers and task workers that die between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// What may happen, to the `n`th of those that it can happen to.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        asker: u16,
        queue: usize,
    },
    /// The asker dies with a task that it has filled, or also queued, and nobody can find.
    DieAsking {
        asker: u16,
        queue: usize,
        queued: bool,
    },
    Post {
        asker: u16,
        queue: usize,
    },
    /// The asker dies when it has posted a task, whose letter it has sent or has not.
    DiePosting {
        asker: u16,
        queue: usize,
        sent: bool,
    },
    /// There was no room for the letter: the task goes into its queue.
    PostInVain {
        asker: u16,
        queue: usize,
    },
    /// The task worker dies with a letter that it has not opened.
    DieWithLetter {
        taker: u16,
    },
    /// All letters are lost, and somebody notices.
    LoseLetters,
    Take {
        taker: u16,
    },
    /// The task worker dies when it has taken a task, before it has moved the queue on.
    DieTaking {
        taker: u16,
    },
    Finish {
        taker: u16,
    },
    /// The task worker dies amid writing a result, or when that stands and nobody knows.
    DieFinishing {
        taker: u16,
        done: bool,
    },
    Collect {
        asker: u16,
    },
}

const ASKERS: u16 = 2;
const TAKERS: u16 = 2;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (asker, taker, queue) = (0..ASKERS, 0..TAKERS, 0..=usize::from(TAKERS));
    let step = prop_oneof![
        20 => (asker.clone(), queue.clone()).prop_map(|(asker, queue)| Step::Ask { asker, queue }),
        2 => (asker.clone(), queue.clone(), any::<bool>())
            .prop_map(|(asker, queue, queued)| Step::DieAsking { asker, queue, queued }),
        20 => (asker.clone(), queue.clone()).prop_map(|(asker, queue)| Step::Post { asker, queue }),
        2 => (asker.clone(), queue.clone(), any::<bool>())
            .prop_map(|(asker, queue, sent)| Step::DiePosting { asker, queue, sent }),
        4 => (asker.clone(), queue.clone()).prop_map(|(asker, queue)| Step::PostInVain { asker, queue }),
        3 => taker.clone().prop_map(|taker| Step::DieWithLetter { taker }),
        1 => Just(Step::LoseLetters),
        20 => taker.clone().prop_map(|taker| Step::Take { taker }),
        2 => taker.clone().prop_map(|taker| Step::DieTaking { taker }),
        20 => taker.clone().prop_map(|taker| Step::Finish { taker }),
        3 => (taker, any::<bool>()).prop_map(|(taker, done)| Step::DieFinishing { taker, done }),
        10 => asker.prop_map(|asker| Step::Collect { asker }),
    ];
    prop::collection::vec(step, 0..300)
}

/// The store, and what must be true of it.
struct World {
    store: Store,
    retries: u32,
    asking: Vec<Asking>,
    hands: BTreeMap<u16, Taken>,
    /// Letters under way, by queue: whose, which slot, which use of it.
    letters: Vec<VecDeque<(u16, u16, u64)>>,
    /// Asked, and not yet told of: by an asker that lives.
    waiting: BTreeSet<TaskId>,
    /// How often each was begun, and how often its task worker died.
    begun: BTreeMap<TaskId, u32>,
    ended: BTreeMap<TaskId, Status>,
}

impl World {
    fn new(slots: usize, retries: u32) -> World {
        let store = store(ASKERS, TAKERS, slots);
        let asking = (0..ASKERS).map(|asker| Asking::open(&store, asker, 1).0).collect();
        let (hands, waiting) = (BTreeMap::new(), BTreeSet::new());
        let letters = vec![VecDeque::new(); usize::from(TAKERS) + 1];
        let (begun, ended) = (BTreeMap::new(), BTreeMap::new());
        World { store, retries, asking, hands, letters, waiting, begun, ended }
    }

    /// Fills a slot and posts it, without a letter yet.
    fn post(&mut self, asker: u16, queue: usize) -> Option<(TaskId, u16, u64)> {
        let (id, slot, ticket) = self.asking[usize::from(asker)].fill(queue, &asker.to_le_bytes())?;
        self.store.post(asker, slot, ticket, queue);
        Some((id, slot, ticket))
    }

    fn send(&mut self, asker: u16, queue: usize, slot: u16, ticket: u64) {
        self.letters[queue].push_back((asker, slot, ticket));
    }

    /// The next letter for this task worker.
    fn letter(&mut self, taker: u16) -> Option<(u16, u16, u64)> {
        let own = usize::from(taker) + 1;
        self.letters[own].pop_front().or_else(|| self.letters[0].pop_front())
    }

    /// Opens letters until there is a task, as a task worker does.
    fn take_posted(&mut self, taker: u16) -> Option<Taken> {
        loop {
            self.store.set_letter(taker, true);
            let letter = self.letter(taker);
            let taken = letter
                .and_then(|(asker, slot, ticket)| self.store.take_posted(asker, slot, ticket, taker, 1));
            self.store.set_letter(taker, false);
            if letter.is_none() || taken.is_some() {
                return taken;
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask { asker, queue } => {
                let payload = asker.to_le_bytes();
                let asked = self.asking[usize::from(asker)].ask(queue, &payload);
                self.waiting.extend(asked);
            }
            Step::DieAsking { asker, queue, queued } => {
                let asking = &mut self.asking[usize::from(asker)];
                if let Some((_, slot, ticket)) = asking.fill(queue, b"nobody sees this")
                    && queued
                {
                    asking.queue(queue, slot, ticket);
                }
                let generation = asking.generation + 1;
                self.waiting.retain(|id| id.asker != asker);
                self.asking[usize::from(asker)] = Asking::open(&self.store, asker, generation).0;
            }
            Step::Post { asker, queue } => {
                if let Some((id, slot, ticket)) = self.post(asker, queue) {
                    self.send(asker, queue, slot, ticket);
                    let posted = self.store.posted(asker, queue) + 1;
                    self.store.set_posted(asker, queue, posted);
                    self.waiting.insert(id);
                }
            }
            Step::DiePosting { asker, queue, sent } => {
                if let Some((_, slot, ticket)) = self.post(asker, queue)
                    && sent
                {
                    self.send(asker, queue, slot, ticket);
                }
                let generation = self.asking[usize::from(asker)].generation + 1;
                self.waiting.retain(|id| id.asker != asker);
                self.asking[usize::from(asker)] = Asking::open(&self.store, asker, generation).0;
            }
            Step::PostInVain { asker, queue } => {
                if let Some((id, slot, ticket)) = self.post(asker, queue) {
                    self.waiting.insert(id);
                    if self.store.recall(asker, slot, ticket) {
                        let asking = &self.asking[usize::from(asker)];
                        asking.queue(queue, slot, ticket);
                        asking.publish(queue);
                    }
                }
            }
            Step::DieWithLetter { taker } if !self.hands.contains_key(&taker) => {
                self.store.set_letter(taker, true);
                self.letter(taker);
                self.bury(taker);
            }
            Step::LoseLetters => {
                self.letters.iter_mut().for_each(VecDeque::clear);
                self.store.revive_posted(None);
            }
            Step::Take { taker } if !self.hands.contains_key(&taker) => {
                let revived = self.store.take_revived(taker, 1);
                let next = revived.or_else(|| self.take_posted(taker));
                let queued = || (0..ASKERS).find_map(|asker| self.store.take(asker, taker, 1));
                if let Some(taken) = next.or_else(queued) {
                    self.begin(taker, taken);
                    self.hands.insert(taker, taken);
                }
            }
            Step::DieTaking { taker } if !self.hands.contains_key(&taker) => {
                let (store, asker) = (&self.store, 0);
                let position = store.next(asker, 0).load(Relaxed);
                if position < store.position(asker, 0) {
                    let entry = Entry::unpack(store.entry(asker, 0, position).load(Relaxed));
                    let taken = store.take_entry(asker, entry, taker, 1);
                    taken.into_iter().for_each(|taken| self.begin(taker, taken));
                }
                self.bury(taker);
            }
            Step::Finish { taker } => {
                if let Some(taken) = self.hands.remove(&taker) {
                    let mut payload = Vec::new();
                    self.store.payload(&taken, &mut payload);
                    assert_eq!(
                        payload,
                        taken.asker().to_le_bytes(),
                        "a payload is whole for whoever begins it"
                    );
                    self.store.finish(&taken, Status::Done, Ok(&[1; 40]));
                }
            }
            Step::DieFinishing { taker, done } => {
                if let Some(taken) = self.hands.remove(&taker) {
                    let body = self.store.body(taken.asker, taken.slot);
                    layout::write(&body[RESULT..], &[0xee; 64]);
                    if done {
                        let length = Length { len: 64, spilled: false };
                        body[OUTCOME].store(state::pack_result(Status::Done, length), Relaxed);
                        let state = State { stage: Stage::Done, ..taken.state };
                        self.store.state(taken.asker, taken.slot).store(state.pack(), Release);
                    }
                }
                self.bury(taker);
            }
            Step::Collect { asker } => self.collect(asker),
            Step::Take { .. } | Step::DieTaking { .. } | Step::DieWithLetter { .. } => {}
        }
    }

    fn begin(&mut self, taker: u16, taken: Taken) {
        let id = self.store.id_of(&taken);
        assert!(
            self.hands.values().all(|other| self.store.id_of(other) != id),
            "{id} is in two hands ({taker})"
        );
        assert!(!self.ended.contains_key(&id), "{id} is begun after its end");
        let begun = self.begun.entry(id).or_default();
        *begun += 1;
        assert!(*begun <= self.retries + 1, "{id} is begun too often");
    }

    fn bury(&mut self, taker: u16) {
        self.hands.remove(&taker);
        self.store.settle(taker, self.retries, 2);
    }

    fn collect(&mut self, asker: u16) {
        let asking = &mut self.asking[usize::from(asker)];
        let generation = asking.generation;
        for (id, status, _) in asking.collect() {
            assert_eq!(id.asker, asker, "{id} is somebody else's");
            assert!(self.ended.insert(id, status).is_none(), "{id} ends twice");
            if id.generation == generation {
                assert!(self.waiting.remove(&id), "nobody has asked for {id}");
            }
        }
    }

    /// Whoever is there works on, and nobody dies any more.
    fn come_to_rest(&mut self) {
        for _ in 0..1_000 {
            for taker in 0..TAKERS {
                self.step(Step::Take { taker });
                self.step(Step::Finish { taker });
            }
            (0..ASKERS).for_each(|asker| self.collect(asker));
            if self.store.depth() == Depth::default() && self.waiting.is_empty() {
                return;
            }
        }
        panic!("tasks are left: {:?}, {:?}", self.store.depth(), self.waiting);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_task_of_a_living_asker_ends_once(steps in steps(), slots in 1..6_usize, retries in 0..3_u32) {
        let mut world = World::new(slots, retries);
        for step in steps {
            world.step(step);
        }
        world.come_to_rest();
        // Every slot is there again.
        for asking in &mut world.asking {
            let all: BTreeSet<u16> = asking.free.iter().copied().collect();
            prop_assert_eq!((all.len(), asking.free.len()), (slots, slots));
        }
        for (id, status) in &world.ended {
            let begun = world.begun.get(id).copied().unwrap_or(0);
            prop_assert!(*status != Status::Lost || begun == retries + 1, "{} is lost too early", id);
        }
    }
}
