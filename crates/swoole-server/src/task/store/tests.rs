//! The store against a model, with askers and task workers that die between any two steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn store(askers: u16, task_workers: u16, slots: usize) -> Store {
    let shape = Shape { askers, task_workers, slots };
    let memory = Memory::create("tasks", shape.size()).unwrap();
    Store::map(&memory, 0, shape).unwrap()
}

/// An asker without files: as much of [`Asker`](crate::task::Asker) as the store needs.
struct Asking {
    store: Store,
    asker: u16,
    generation: u32,
    number: u64,
    free: Vec<u16>,
}

impl Asking {
    fn open(store: &Store, asker: u16, generation: u32) -> (Asking, usize) {
        let (mut free, mut orphans) = (Vec::new(), 0);
        for slot in 0..store.shape().slots as u16 {
            match store.reclaim(asker, slot) {
                Reclaimed::Free | Reclaimed::Abandoned { .. } => free.push(slot),
                Reclaimed::UnderWay => {}
                Reclaimed::Done(ready) => {
                    store.free(asker, slot, ready.ticket);
                    free.push(slot);
                    orphans += 1;
                }
            }
        }
        (Asking { store: store.clone(), asker, generation, number: 0, free }, orphans)
    }

    fn fill(&mut self, queue: usize, payload: &[u8]) -> Option<(TaskId, u16, u64)> {
        let position = self.store.position(self.asker, queue);
        if !self.store.has_room(self.asker, queue, position) {
            return None;
        }
        let slot = self.free.pop()?;
        self.number += 1;
        let id = TaskId { asker: self.asker, generation: self.generation, number: self.number };
        let ticket = self.store.fill(id, slot, payload, false, 7);
        Some((id, slot, ticket))
    }

    fn queue(&self, queue: usize, slot: u16, ticket: u64) {
        self.store.queue(self.asker, slot, ticket, queue, self.store.position(self.asker, queue));
    }

    fn publish(&self, queue: usize) {
        self.store.publish(self.asker, queue, self.store.position(self.asker, queue) + 1);
    }

    fn ask(&mut self, queue: usize, payload: &[u8]) -> Option<TaskId> {
        let (id, slot, ticket) = self.fill(queue, payload)?;
        self.queue(queue, slot, ticket);
        self.publish(queue);
        Some(id)
    }

    fn collect(&mut self) -> Vec<(TaskId, Status, Vec<u8>)> {
        let mut found = Vec::new();
        self.store.over(self.asker, |over| match over {
            Found::Done(ready) => found.push(ready),
            // Nobody has asked for one that is one-way.
            Found::Free { .. } => {}
        });
        let store = self.store.clone();
        let take = |ready: Ready| {
            let bytes = store.result(self.asker, &ready);
            store.free(self.asker, ready.slot, ready.ticket);
            self.free.push(ready.slot);
            (ready.id, ready.status, bytes)
        };
        found.into_iter().map(take).collect()
    }
}

#[test]
fn a_task_goes_there_and_back() {
    let store = store(2, 2, 4);
    let (mut asking, _) = Asking::open(&store, 1, 3);
    let payload = vec![9; CAN_BE_INLINE];
    let id = asking.ask(0, &payload).unwrap();
    assert_eq!(store.depth(), Depth { queued: 1, running: 0, oldest: Some(7) });
    let taken = store.take(1, 0, 8).unwrap();
    assert_eq!((store.id_of(&taken), store.depth().running), (id, 1));
    assert!(store.take(1, 1, 8).is_none());
    let mut bytes = Vec::new();
    assert_eq!(store.payload(&taken, &mut bytes), None);
    assert_eq!(bytes, payload);
    assert!(!store.has_marks(1));
    store.finish(&taken, Status::Failed, Ok(b"no"));
    assert!(store.has_marks(1) && !store.has_marks(0));
    assert_eq!(asking.collect(), [(id, Status::Failed, b"no".to_vec())]);
    assert_eq!(store.depth(), Depth::default());
}

#[test]
fn large_ones_are_only_told_of() {
    let store = store(1, 1, 1);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    asking.ask(0, &vec![0; CAN_BE_INLINE + 1]).unwrap();
    let taken = store.take(0, 0, 8).unwrap();
    assert_eq!(store.payload(&taken, &mut Vec::new()), Some(CAN_BE_INLINE + 1));
    store.finish(&taken, Status::Done, Err(1 << 40));
    let ready = store.look(0, 0).unwrap();
    assert!((ready.len, ready.spilled, ready.payload_spilled) == (1 << 40, true, true));
}

#[test]
fn as_many_as_there_are_slots_and_no_more() {
    let store = store(1, 1, 3);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    for round in 0..20_u8 {
        let asked: Vec<_> = (0..3).map(|_| asking.ask(round as usize % 2, &[round]).unwrap()).collect();
        assert_eq!(asking.ask(0, b""), None);
        for id in asked {
            let taken = store.take(0, 0, 8).unwrap();
            assert_eq!(store.id_of(&taken), id, "in the order of asking");
            store.finish(&taken, Status::Done, Ok(b""));
        }
        assert_eq!(asking.collect().len(), 3);
    }
}

#[test]
fn one_for_another_task_worker_is_left_to_it() {
    let store = store(1, 3, 4);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    let id = asking.ask(2 + 1, b"for number 2").unwrap();
    assert!(store.has_work(0, 2) && !store.has_work(0, 1));
    assert!(store.take(0, 0, 8).is_none() && store.take(0, 1, 8).is_none());
    let taken = store.take(0, 2, 8).unwrap();
    assert_eq!(store.id_of(&taken), id);
    // It dies on it: the next one there begins it again, and no other.
    assert_eq!(store.settle(2, 1, 9)[0].fate, TaskFate::Retried);
    assert!(store.take_revived(0, 9).is_none());
    assert!(store.take_revived(2, 9).is_some());
}

#[test]
fn what_was_withdrawn_nobody_begins() {
    let store = store(1, 1, 2);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    let (_, slot, ticket) = asking.fill(0, b"one").unwrap();
    asking.queue(0, slot, ticket);
    asking.publish(0);
    let other = asking.ask(0, b"two").unwrap();
    assert!(store.withdraw(0, slot, ticket));
    assert!(!store.withdraw(0, slot, ticket));
    asking.free.push(slot);
    let third = asking.ask(0, b"three").unwrap();
    for id in [other, third] {
        let taken = store.take(0, 0, 8).unwrap();
        assert_eq!(store.id_of(&taken), id);
        assert!(!store.withdraw(0, taken.place().0, taken.place().1), "it is begun");
        store.finish(&taken, Status::Done, Ok(b""));
    }
    assert!(store.take(0, 0, 8).is_none());
}

#[test]
fn the_slot_of_a_one_way_task_is_free_when_it_is_over() {
    let store = store(1, 1, 1);
    let id = TaskId { asker: 0, generation: 1, number: 1 };
    let ask = || {
        let ticket = store.fill(id, 0, b"one way", true, 7);
        let position = store.position(0, 0);
        store.queue(0, 0, ticket, 0, position);
        store.publish(0, 0, position + 1);
        ticket
    };
    let over = || {
        let mut free = Vec::new();
        store.over(0, |over| match over {
            Found::Free { slot: 0, ticket } => free.push(ticket),
            other => panic!("{other:?}"),
        });
        free
    };
    let ticket = ask();
    let taken = store.take(0, 0, 8).unwrap();
    assert!(store.is_one_way(&taken));
    store.finish_one_way(&taken, Status::Done);
    assert_eq!((over(), store.counted(Count::Done)), (vec![ticket], 1));
    // Its task worker dies on it: begun again, then lost, and free in any case.
    let ticket = ask();
    store.take(0, 0, 8).unwrap();
    assert_eq!(store.settle(0, 1, 9)[0].fate, TaskFate::Retried);
    store.take_revived(0, 9).unwrap();
    assert_eq!(store.settle(0, 1, 9)[0].fate, TaskFate::Lost);
    assert_eq!((over(), store.counted(Count::Lost)), (vec![ticket], 1));
    // Or it dies when that is over, and nobody knows.
    let ticket = ask();
    let taken = store.take(0, 0, 8).unwrap();
    store.finish_one_way(&taken, Status::Failed);
    over();
    assert!(store.settle(0, 1, 9).is_empty());
    assert_eq!(over(), [ticket]);
}

#[test]
fn withdrawn_tasks_keep_no_place() {
    let store = store(1, 1, 2);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    let first = asking.ask(0, b"waits").unwrap();
    let mut refused = 0;
    for _ in 0..20 {
        let Some((_, slot, ticket)) = asking.fill(0, b"withdrawn") else {
            // Behind one that waits, nothing moves.
            refused += 1;
            let taken = store.take(0, 0, 8);
            assert!(taken.is_none_or(|taken| store.id_of(&taken) == first));
            store.skip_withdrawn(0, 0);
            continue;
        };
        asking.queue(0, slot, ticket);
        asking.publish(0);
        assert!(store.withdraw(0, slot, ticket));
        asking.free.push(slot);
    }
    assert!(refused > 0 && asking.ask(0, b"last").is_some());
}

#[test]
fn a_letter_that_nobody_opened_is_nobodys_task() {
    let store = store(1, 2, 4);
    let (mut asking, _) = Asking::open(&store, 0, 1);
    let mut post = |queue| {
        let (id, slot, ticket) = asking.fill(queue, b"posted").unwrap();
        store.post(0, slot, ticket, queue);
        store.set_posted(0, queue, store.posted(0, queue) + 1);
        (id, slot, ticket)
    };
    let before = store.arrivals(0);
    let (for_anybody, for_one) = (post(0), post(1));
    let _for_the_other = post(2);
    assert!(store.arrivals(0) != before);
    // It had none: nothing changes.
    store.settle(0, 0, 9);
    assert!(store.take_revived(0, 9).is_none());
    store.set_letter(0, true);
    assert!(store.settle(0, 0, 9).is_empty(), "it had nothing in hand");
    let ids: BTreeSet<TaskId> =
        std::iter::from_fn(|| store.take_revived(0, 9)).map(|taken| store.id_of(&taken)).collect();
    assert_eq!(ids, BTreeSet::from([for_anybody.0, for_one.0]));
    for (_, slot, ticket) in [for_anybody, for_one] {
        assert!(store.take_posted(0, slot, ticket, 1, 9).is_none(), "its letter is waste paper");
    }
    assert!(store.take_posted(9, 0, 1, 1, 9).is_none() && store.take_posted(0, 99, 1, 1, 9).is_none());
}

#[test]
fn what_nobody_of_the_server_has_asked_is_a_task_like_any_other() {
    let store = store(2, 1, 2);
    let id = TaskId { asker: TaskId::FOREIGN, generation: 3, number: 7 };
    assert!(store.is_vacant(1, 1));
    let taken = store.adopt((1, 1), id, Ok(b"from elsewhere"), 0, 5);
    assert!(!store.is_vacant(1, 1) && store.is_one_way(&taken) && store.id_of(&taken).is_foreign());
    // Its task worker dies: the next one begins it.
    let told = store.settle(0, 1, 9);
    assert_eq!((told[0].id, told[0].fate), (id, TaskFate::Retried));
    let taken = store.take_revived(0, 9).unwrap();
    let mut bytes = Vec::new();
    store.payload(&taken, &mut bytes);
    assert_eq!(bytes, b"from elsewhere");
    store.finish_one_way(&taken, Status::Done);
    assert!(store.is_vacant(1, 1));
    assert_eq!((store.counted(Count::Done), id.to_string()), (1, "foreign.3.7".into()));
    // None after all.
    let taken = store.adopt((1, 1), id, Err(0), 0, 5);
    store.set_spilled_len(&taken, 99_999);
    assert_eq!(store.payload(&taken, &mut bytes), Some(99_999));
    store.put_back(&taken);
    assert_eq!((store.is_vacant(1, 1), store.depth()), (true, Depth::default()));
}

/// An asker may write anything into its row: that costs nobody else anything.
#[test]
fn nonsense_is_believed_only_as_far_as_it_costs_nothing() {
    let store = store(1, 2, 5);
    let mut rng = fastrand_like(1);
    for _ in 0..2_000 {
        for _ in 0..20 {
            let words = store.row(0);
            let at = rng() as usize % words.len().min(store.shape.bodies() + 3 * layout::SLOT_WORDS);
            let word = rng() >> (rng() % 64);
            words[at].store(word, Relaxed);
        }
        for taker in 0..2 {
            if let Some(taken) = store.take(0, taker, 1).or_else(|| store.take_revived(taker, 1)) {
                let mut bytes = Vec::new();
                store.payload(&taken, &mut bytes);
                assert!(bytes.len() <= CAN_BE_INLINE);
                store.finish(&taken, Status::Done, Ok(b"x"));
            }
            store.settle(taker, 1, 2);
        }
        store.depth();
        let (mut asking, _) = Asking::open(&store, 0, 1);
        for (_, _, result) in asking.collect() {
            assert!(result.len() <= CAN_BE_INLINE);
        }
        asking.ask(0, b"sense");
    }
}

/// splitmix64.
fn fastrand_like(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

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
