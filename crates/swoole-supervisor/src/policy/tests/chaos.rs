//! Any events in any order. [`World`] objects to every action that breaks a rule; in the end everything has to
//! come to rest.

use proptest::prelude::*;

use super::*;
use crate::Scope;

/// Something that may happen, to the `n`th of those that it can happen to.
#[derive(Debug, Clone)]
enum Step {
    Spawn(usize),
    FailSpawn(usize),
    Ready(usize),
    Exit(usize, ExitStatus),
    Settle(usize),
    Advance(u64),
    Reload(Scope, Option<ReloadMode>),
    Retire(usize),
    Recycle(usize),
    Hold,
    Stop(u64),
    /// An event of a process that is long gone, or of a slot that never was.
    Stray(u16, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let scope = prop_oneof![Just(Scope::All), (0..4_u16).prop_map(Scope::Group)];
    let mode = prop::option::of(prop_oneof![Just(ReloadMode::Rolling), Just(ReloadMode::AllAtOnce)]);
    let status =
        prop_oneof![Just(CLEAN), Just(CRASH), Just(ExitStatus::Exited(3)), Just(ExitStatus::Unknown)];
    let step = prop_oneof![
        30 => any::<usize>().prop_map(Step::Spawn),
        2 => any::<usize>().prop_map(Step::FailSpawn),
        30 => any::<usize>().prop_map(Step::Ready),
        20 => (any::<usize>(), status).prop_map(|(n, status)| Step::Exit(n, status)),
        20 => any::<usize>().prop_map(Step::Settle),
        15 => (0..12_000_u64).prop_map(Step::Advance),
        5 => (scope, mode).prop_map(|(scope, mode)| Step::Reload(scope, mode)),
        5 => any::<usize>().prop_map(Step::Retire),
        15 => any::<usize>().prop_map(Step::Recycle),
        1 => Just(Step::Hold),
        1 => (0..5_000_u64).prop_map(Step::Stop),
        3 => (0..5_u16, 0..3_u32).prop_map(|(group, age)| Step::Stray(group, age)),
    ];
    prop::collection::vec(step, 0..200)
}

/// The `n`th of `of`, round and round, if there is any.
fn pick(n: usize, of: impl IntoIterator<Item = SlotId>) -> Option<SlotId> {
    let of: Vec<SlotId> = of.into_iter().collect();
    n.checked_rem(of.len()).map(|at| of[at])
}

impl World {
    fn step(&mut self, step: Step) {
        let candidate = match &step {
            Step::Spawn(n) | Step::FailSpawn(n) => pick(*n, self.asked.keys().copied()),
            Step::Ready(n) | Step::Exit(n, _) | Step::Recycle(n) => pick(*n, self.live.keys().copied()),
            Step::Settle(n) => pick(*n, self.buried.iter().copied()),
            Step::Retire(n) => pick(*n, self.policy.slots.iter().map(|slot| slot.id)),
            Step::Stray(group, _) => Some(slot(*group, 0)),
            Step::Advance(_) | Step::Reload(..) | Step::Hold | Step::Stop(_) => Some(slot(0, 0)),
        };
        let Some(slot) = candidate else { return };
        match step {
            Step::Spawn(_) => self.spawn(slot),
            Step::FailSpawn(_) => self.fail_spawn(slot),
            Step::Ready(_) => self.ready(slot),
            Step::Exit(_, status) => self.exit(slot, status),
            Step::Settle(_) => self.settle(slot),
            Step::Advance(time) => self.advance(ms(time)),
            Step::Reload(scope, mode) => self.event(Event::Reload { scope, mode }),
            Step::Retire(_) => self.event(Event::Retire { slot }),
            Step::Recycle(_) => self.event(Event::Recycle { slot, generation: self.generation(slot) }),
            Step::Hold => self.event(Event::Hold),
            Step::Stop(within) => self.event(Event::Stop { within: ms(within) }),
            Step::Stray(_, age) => {
                let current = self.last_generation.get(&slot).copied().unwrap_or(0);
                if let Some(generation) = current.checked_sub(age + 1) {
                    self.event(Event::Ready { slot, generation });
                    self.event(Event::Recycle { slot, generation });
                    self.event(Event::Exited { slot, generation, status: CRASH });
                }
                if !self.buried.contains(&slot) {
                    self.event(Event::Settled { slot });
                }
            }
        }
    }

    /// From now on the world is kind: forks succeed, processes get ready and retire when asked to.
    fn come_to_rest(&mut self) {
        for _ in 0..1_000 {
            self.spawn_all();
            self.ready_all();
            for slot in self.buried.clone() {
                self.settle(slot);
            }
            let ends = self.retiring().into_iter().chain(self.killed()).chain(self.gone.clone());
            for slot in ends.collect::<BTreeSet<_>>() {
                self.exit(slot, CLEAN);
            }
            let is_busy = !self.asked.is_empty() || !self.buried.is_empty() || !self.retiring().is_empty();
            match self.policy.next_deadline() {
                _ if is_busy => {}
                Some(deadline) => self.advance(deadline.saturating_sub(self.now)),
                None => return,
            }
        }
        panic!("no rest after a thousand rounds: {:?}", self.policy);
    }
}

fn options() -> impl Strategy<Value = Options> {
    let start_timeout = prop::option::of((1..10_000_u64).prop_map(ms));
    let options =
        |(start_timeout, reload_parallel)| Options { start_timeout, reload_parallel, ..Options::default() };
    (start_timeout, 1..4_u16).prop_map(options)
}

fn found() -> impl Strategy<Value = Vec<Found>> {
    let one = prop_oneof![4 => Just(Found::Serving), 1 => Just(Found::Leaving), 1 => Just(Found::Gone)];
    prop::collection::vec(one, 0..8)
}

fn groups() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(0..4_u16, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_rule_is_broken_and_every_slot_serves_in_the_end(
        groups in groups(),
        options in options(),
        found in found(),
        permanent in 0..8_u16,
        steps in steps(),
    ) {
        let mut world = World::taking_over(options, &groups, &found);
        world.policy.make_permanent(permanent);
        let mut due = Vec::new();
        for step in steps {
            if let Step::Recycle(n) = step {
                due.extend(pick(n, world.live.keys().copied()).map(|slot| (slot, world.generation(slot))));
            }
            world.step(step);
        }
        world.come_to_rest();
        if world.stop_at.is_some() {
            prop_assert!(world.policy.is_finished());
        } else {
            if !world.policy.turns.is_held() {
                prop_assert!(world.policy.reloads.is_idle(), "a reload never ends");
                prop_assert!(world.policy.turns.is_idle(), "a turn never comes");
                let left = due.iter().find(|(slot, generation)| world.generation(*slot) == *generation);
                prop_assert_eq!(left, None, "is due and never replaced");
            }
            prop_assert!(world.live.values().all(|live| live.ready));
            prop_assert_eq!(world.live.len(), groups.iter().copied().map(usize::from).sum::<usize>());
        }
    }

    #[test]
    fn a_stop_ends_though_nobody_helps(
        groups in groups(),
        options in options(),
        found in found(),
        permanent in 0..8_u16,
        steps in steps(),
        within in 0..5_000_u64,
    ) {
        let mut world = World::taking_over(options, &groups, &found);
        world.policy.make_permanent(permanent);
        for step in steps {
            world.step(step);
        }
        world.event(Event::Stop { within: ms(within) });
        world.spawn_all();
        world.advance(ms(within));
        prop_assert_eq!(world.killed().len(), world.live.len(), "somebody survives the bound");
        for slot in world.killed() {
            world.exit(slot, CRASH);
        }
        prop_assert!(world.policy.is_finished());
        prop_assert_eq!(world.policy.next_deadline(), None);
    }
}
