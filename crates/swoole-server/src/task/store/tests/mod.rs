//! The store, step by step, and against a model.

mod model;

use std::collections::BTreeSet;

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
