//! Who is replaced when, and how many at once: what happens step by step.

use super::*;
use crate::Scope;

const FIRST: SlotId = SlotId { group: 0, slot: 0 };

fn parallel(reload_parallel: u16) -> Options {
    Options { reload_parallel, ..Options::default() }
}

/// A world in which all processes of the first generation serve.
fn serving(reload_parallel: u16, groups: &[u16]) -> World {
    let mut world = World::with(parallel(reload_parallel), groups);
    world.spawn_all();
    world.ready_all();
    world.take_log();
    world
}

impl World {
    fn recycle(&mut self, slot: SlotId) {
        self.event(Event::Recycle { slot, generation: self.generation(slot) });
    }

    fn reload(&mut self) {
        self.event(Event::Reload { scope: Scope::All, mode: None });
    }
}

#[test]
fn a_reload_takes_as_many_at_once_as_it_may() {
    let mut world = serving(2, &[5]);
    world.reload();
    assert_eq!(world.retiring(), [slot(0, 0), slot(0, 1)]);
    world.die(slot(0, 1), CLEAN);
    world.spawn(slot(0, 1));
    assert_eq!(world.retiring(), [slot(0, 0)], "the next waits for a successor to be ready");
    world.ready(slot(0, 1));
    assert_eq!(world.retiring(), [slot(0, 0), slot(0, 2)]);
    for index in [2, 3, 0, 4] {
        world.succeed(slot(0, index), CLEAN);
    }
    assert_eq!(world.take_log().last().unwrap(), "reloaded [0]");
}

#[test]
fn more_than_there_are_is_all() {
    let mut world = serving(100, &[2]);
    world.reload();
    assert_eq!(world.retiring(), [slot(0, 0), slot(0, 1)]);
}

#[test]
fn a_reload_of_several_stops_at_a_successor_that_cannot_start() {
    let mut world = serving(2, &[4]);
    world.reload();
    world.die(FIRST, CLEAN);
    world.spawn(FIRST);
    world.die(FIRST, CRASH);
    assert_eq!(world.take_log().last().unwrap(), "reload aborted by 0.0 signal:11, 2 untouched");
    world.succeed(slot(0, 1), CLEAN);
    assert!(world.retiring().is_empty(), "it is over");
    assert_eq!([2, 3].map(|index| world.generation(slot(0, index))), [1, 1]);
}

#[test]
fn who_is_due_leaves_one_after_the_other() {
    let mut world = serving(1, &[3]);
    for index in [2, 0, 1] {
        world.recycle(slot(0, index));
        world.recycle(slot(0, index));
    }
    for index in [2, 0, 1] {
        assert_eq!(world.retiring(), [slot(0, index)], "in the order in which they were due");
        world.die(slot(0, index), CLEAN);
        world.spawn(slot(0, index));
        assert!(world.retiring().is_empty());
        world.ready(slot(0, index));
    }
    assert!(world.policy.turns.is_idle());
}

#[test]
fn groups_have_turns_of_their_own() {
    let mut world = serving(1, &[2, 2]);
    world.recycle(slot(0, 1));
    world.recycle(slot(1, 0));
    world.recycle(slot(1, 1));
    assert_eq!(world.retiring(), [slot(0, 1), slot(1, 0)]);
}

#[test]
fn who_has_been_replaced_meanwhile_is_not_due_any_more() {
    let mut world = serving(1, &[3]);
    for index in 0..3 {
        world.recycle(slot(0, index));
    }
    world.succeed(slot(0, 1), CRASH);
    world.event(Event::Retire { slot: slot(0, 2) });
    world.succeed(slot(0, 2), CLEAN);
    world.succeed(FIRST, CLEAN);
    assert!(world.retiring().is_empty() && world.policy.turns.is_idle());
}

#[test]
fn who_is_due_before_it_is_heard_to_be_ready_has_its_turn_then() {
    let mut world = World::new(&[1]);
    world.spawn(FIRST);
    world.recycle(FIRST);
    assert!(world.retiring().is_empty());
    world.ready(FIRST);
    assert_eq!(world.retiring(), [FIRST]);
}

#[test]
fn as_long_as_a_successor_cannot_start_who_is_due_goes_on_serving() {
    let mut world = serving(1, &[2]);
    world.recycle(FIRST);
    world.recycle(slot(0, 1));
    world.die(FIRST, CLEAN);
    for _ in 0..20 {
        world.spawn_all();
        world.die(FIRST, CRASH);
        world.advance(ms(6_000));
        assert!(world.retiring().is_empty());
    }
    world.spawn(FIRST);
    world.ready(FIRST);
    assert_eq!(world.retiring(), [slot(0, 1)]);
}

#[test]
fn a_reload_waits_for_who_is_being_recycled_and_makes_the_rest_superfluous() {
    let mut world = serving(1, &[3]);
    world.recycle(slot(0, 2));
    world.recycle(slot(0, 1));
    world.reload();
    assert_eq!(world.retiring(), [slot(0, 2)]);
    world.recycle(slot(0, 0));
    for index in [2, 0, 1] {
        assert_eq!(world.retiring(), [slot(0, index)]);
        world.succeed(slot(0, index), CLEAN);
    }
    assert_eq!(world.take_log().last().unwrap(), "reloaded [0]");
    assert!(world.retiring().is_empty() && world.policy.turns.is_idle(), "each was replaced once");
}

#[test]
fn a_reload_tries_who_could_not_start_before_it_takes_who_serves() {
    let mut world = serving(1, &[3]);
    world.recycle(slot(0, 2));
    world.die(slot(0, 2), CLEAN);
    world.spawn(slot(0, 2));
    world.die(slot(0, 2), CRASH);
    world.reload();
    world.spawn_all();
    world.die(slot(0, 2), CRASH);
    assert_eq!(world.take_log().last().unwrap(), "reload aborted by 0.2 signal:11, 2 untouched");
    world.reload();
    world.spawn(slot(0, 2));
    assert!(world.retiring().is_empty());
    world.ready(slot(0, 2));
    assert_eq!(world.retiring(), [FIRST]);
}

#[test]
fn a_turn_that_another_supervisor_gave_is_a_turn() {
    let found = [Found::Serving, Found::Leaving, Found::Serving];
    let mut world = World::taking_over(parallel(1), &[3], &found);
    assert_eq!(world.retiring(), [slot(0, 1)], "it is asked again");
    world.recycle(FIRST);
    world.reload();
    assert_eq!(world.retiring(), [slot(0, 1)]);
    world.succeed(slot(0, 1), CLEAN);
    assert_eq!(world.retiring(), [FIRST]);

    for found in [&[Found::Serving, Found::Gone][..], &[Found::Serving]] {
        let mut world = World::taking_over(parallel(1), &[2], found);
        world.recycle(FIRST);
        assert!(world.retiring().is_empty());
        if found.len() == 2 {
            world.die(slot(0, 1), CLEAN);
        }
        world.spawn(slot(0, 1));
        world.ready(slot(0, 1));
        assert_eq!(world.retiring(), [FIRST]);
    }
}

#[test]
fn nobody_gets_a_turn_any_more_after_they_were_held() {
    let mut world = serving(1, &[3]);
    world.reload();
    world.event(Event::Hold);
    world.succeed(FIRST, CLEAN);
    world.recycle(slot(0, 1));
    assert!(world.retiring().is_empty());
    world.event(Event::Retire { slot: slot(0, 1) });
    assert_eq!(world.retiring(), [slot(0, 1)], "who asks for one gets it");
    world.event(Event::Stop { within: ms(100) });
    assert_eq!(world.retiring().len(), 3);
}

#[test]
fn nobody_is_recycled_in_a_stop() {
    let mut world = serving(1, &[2]);
    world.recycle(FIRST);
    world.event(Event::Stop { within: ms(100) });
    world.recycle(slot(0, 1));
    world.exit(FIRST, CLEAN);
    world.exit(slot(0, 1), CLEAN);
    assert!(world.policy.is_finished());
}
