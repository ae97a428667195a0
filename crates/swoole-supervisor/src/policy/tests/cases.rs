//! What happens, step by step, in the situations that the documentation tells of.

use super::*;
use crate::Scope;

const FIRST: SlotId = SlotId { group: 0, slot: 0 };

fn reload(scope: Scope) -> Event {
    Event::Reload { scope, mode: None }
}

#[test]
fn a_start_fills_every_slot_with_its_first_generation() {
    let mut world = World::new(&[2, 0, 1]);
    assert_eq!(world.asked, BTreeMap::from([(slot(0, 0), 1), (slot(0, 1), 1), (slot(2, 0), 1)]));
    world.spawn_all();
    world.ready(slot(2, 0));
    assert_eq!(world.take_log(), ["started 0.0 #1", "started 0.1 #1", "started 2.0 #1", "ready 2.0 #1"]);
    assert_eq!(world.policy.next_deadline(), None, "nothing happens by itself");
}

#[test]
fn what_another_supervisor_has_left_is_kept_and_the_rest_is_filled() {
    let mut world = World::taking_over(Options::default(), &[2], &[Found::Serving]);
    assert_eq!(world.asked, BTreeMap::from([(slot(0, 1), 1)]));
    world.spawn_all();
    world.ready_all();
    assert_eq!(world.take_log(), ["adopted 0.0 #7", "started 0.1 #1", "ready 0.1 #1"]);
    world.die(FIRST, CRASH);
    assert_eq!(world.asked, BTreeMap::from([(FIRST, 8)]), "its successor has the next number");
}

#[test]
fn a_crash_is_replaced_at_once_and_then_more_and_more_slowly() {
    let mut world = World::serving(&[1]);
    world.die(FIRST, CRASH);
    assert!(world.asked.contains_key(&FIRST), "the first at once");
    for wait in [50, 100, 200, 400, 800, 1600, 3200, 5000].map(ms) {
        world.spawn(FIRST);
        world.die(FIRST, CRASH);
        assert_eq!(world.policy.next_deadline(), Some(world.now + wait));
        world.advance(wait - ms(1));
        assert!(world.asked.is_empty(), "not before {wait:?}");
        world.advance(ms(1));
        assert!(world.asked.contains_key(&FIRST), "after {wait:?}");
    }
}

#[test]
fn a_successor_that_does_not_get_ready_in_time_could_not_start() {
    let options = Options { start_timeout: Some(ms(700)), ..Options::default() };
    let mut world = World::with(options, &[2]);
    world.spawn_all();
    assert_eq!(world.policy.next_deadline(), None, "the first is waited for");
    world.ready_all();
    world.event(reload(Scope::All));
    world.die(FIRST, CLEAN);
    world.spawn(FIRST);
    world.advance(ms(699));
    assert!(!world.live[&FIRST].killed);
    world.take_log();
    world.advance(ms(1));
    assert!(world.live[&FIRST].killed);
    world.die(FIRST, CRASH);
    let log = world.take_log();
    assert!(log[0].starts_with("start timed out 0.0"), "{log:?}");
    assert!(log.iter().any(|line| line.starts_with("reload aborted")), "{log:?}");
    assert!(!world.live[&slot(0, 1)].retired, "the other one goes on serving");
}

#[test]
fn a_clean_exit_is_replaced_at_once_each_time() {
    let mut world = World::serving(&[1]);
    for generation in 2..50 {
        world.succeed(FIRST, CLEAN);
        assert_eq!(world.generation(FIRST), generation);
    }
}

#[test]
fn a_clean_exit_before_it_was_ready_is_a_death() {
    let mut world = World::new(&[1]);
    world.spawn(FIRST);
    world.die(FIRST, CLEAN);
    world.spawn(FIRST);
    world.die(FIRST, CLEAN);
    assert_eq!(world.policy.next_deadline(), Some(ms(50)));
}

#[test]
fn a_stable_process_clears_the_record() {
    let mut world = World::serving(&[1]);
    for _ in 0..3 {
        world.die(FIRST, CRASH);
        world.advance(ms(200));
        world.spawn(FIRST);
    }
    world.ready(FIRST);
    world.advance(ms(9_999));
    world.die(FIRST, CRASH);
    assert_eq!(world.policy.next_deadline(), Some(world.now + ms(100)), "not stable: the fourth in a row");
    world.advance(ms(100));
    world.spawn(FIRST);
    world.ready(FIRST);
    world.advance(ms(10_000));
    world.die(FIRST, CRASH);
    assert!(world.asked.contains_key(&FIRST), "stable: the first in a row again");
}

#[test]
fn one_that_had_started_is_replaced_soon_however_often_it_dies() {
    let mut world = World::serving(&[1]);
    for _ in 0..50 {
        world.die(FIRST, CRASH);
        world.advance(ms(100));
        world.spawn(FIRST);
        world.ready(FIRST);
    }
    assert!(!world.take_log().iter().any(|line| line.starts_with("failing")));
}

#[test]
fn a_slot_that_keeps_dying_is_failing_and_the_others_go_on() {
    let mut world = World::serving(&[2]);
    world.die(FIRST, CRASH);
    world.spawn(FIRST);
    for _ in 0..9 {
        world.die(FIRST, CRASH);
        world.advance(ms(5000));
        world.spawn(FIRST);
    }
    assert!(!world.take_log().iter().any(|line| line.starts_with("failing")));
    world.die(FIRST, CRASH);
    assert_eq!(world.take_log(), ["failing 0.0 10 deaths 5s"]);
    world.advance(ms(4_999));
    assert!(world.asked.is_empty());
    world.advance(ms(1));
    world.spawn(FIRST);
    world.die(FIRST, CRASH);
    assert_eq!(world.take_log(), ["started 0.0 #12", "backing off 0.0 5s"], "it is told once");
    assert!(world.live[&slot(0, 1)].ready);
}

#[test]
fn a_failing_slot_that_recovers_is_like_any_other() {
    let mut world = World::serving(&[1]);
    world.die(FIRST, CRASH);
    world.spawn(FIRST);
    for _ in 0..10 {
        world.die(FIRST, CRASH);
        world.advance(ms(5000));
        world.spawn(FIRST);
    }
    world.ready(FIRST);
    world.advance(ms(10_000));
    world.take_log();
    world.succeed(FIRST, CRASH);
    assert_eq!(world.take_log(), ["started 0.0 #13", "ready 0.0 #13"], "at once");
    world.die(FIRST, CRASH);
    world.advance(ms(5000));
    world.spawn(FIRST);
    for _ in 0..10 {
        world.die(FIRST, CRASH);
        world.advance(ms(5000));
        world.spawn(FIRST);
    }
    assert!(world.take_log().contains(&"failing 0.0 10 deaths 5s".to_owned()), "and may fail again");
}

#[test]
fn deaths_long_ago_do_not_count() {
    let mut world = World::serving(&[1]);
    for _ in 0..30 {
        world.advance(ms(9_000));
        world.die(FIRST, CRASH);
        world.advance(ms(5_000));
        world.spawn(FIRST);
        world.ready(FIRST);
    }
    assert!(!world.take_log().iter().any(|line| line.starts_with("failing")), "five a minute");
}

#[test]
fn a_fork_that_is_refused_is_not_repeated_at_once() {
    let mut world = World::new(&[1]);
    world.fail_spawn(FIRST);
    assert_eq!(world.policy.next_deadline(), Some(ms(50)));
    world.advance(ms(50));
    assert_eq!(world.asked[&FIRST], 2, "no generation is given twice");
}

#[test]
fn the_successor_waits_until_things_are_settled() {
    let mut world = World::serving(&[1]);
    world.exit(FIRST, CRASH);
    world.advance(ms(60_000));
    assert!(world.asked.is_empty());
    world.settle(FIRST);
    assert!(world.asked.contains_key(&FIRST));
}

#[test]
fn who_does_not_retire_in_time_is_killed() {
    let mut world = World::serving(&[1]);
    world.event(Event::Retire { slot: FIRST });
    world.event(Event::Retire { slot: FIRST });
    assert_eq!(world.retiring(), [FIRST]);
    world.advance(ms(2_999));
    assert!(world.killed().is_empty());
    world.advance(ms(1));
    assert_eq!(world.killed(), [FIRST]);
    assert_eq!(world.policy.next_deadline(), None, "there is nothing beyond a kill");
    world.succeed(FIRST, ExitStatus::Signaled { signal: 9, core_dumped: false });
    assert_eq!(world.take_log(), ["retiring 0.0", "killed 0.0 after 3s", "started 0.0 #2", "ready 0.0 #2"]);
}

#[test]
fn a_rolling_reload_takes_one_slot_after_the_other() {
    let mut world = World::serving(&[3]);
    world.event(reload(Scope::All));
    for index in 0..3 {
        let slot = slot(0, index);
        assert_eq!(world.retiring(), [slot], "one at a time");
        world.die(slot, CLEAN);
        world.spawn(slot);
        assert!(world.retiring().is_empty(), "the next waits until the successor is ready");
        world.ready(slot);
        assert_eq!(world.generation(slot), 2);
    }
    let log = world.take_log();
    assert_eq!(log.first().unwrap(), "reload [0] Rolling");
    assert_eq!(log.last().unwrap(), "reloaded [0]");
}

#[test]
fn a_reload_all_at_once_retires_everybody() {
    let mut world = World::serving(&[2, 2]);
    world.event(Event::Reload { scope: Scope::Group(1), mode: Some(ReloadMode::AllAtOnce) });
    assert_eq!(world.retiring(), [slot(1, 0), slot(1, 1)]);
    world.succeed(slot(1, 1), CLEAN);
    world.succeed(slot(1, 0), CLEAN);
    assert_eq!(world.take_log().last().unwrap(), "reloaded [1]");
    assert_eq!(world.generation(slot(0, 0)), 1);
}

#[test]
fn a_successor_that_cannot_start_ends_a_reload_before_it_does_harm() {
    let mut world = World::serving(&[3]);
    world.event(reload(Scope::All));
    world.die(FIRST, CLEAN);
    world.spawn(FIRST);
    world.die(FIRST, CRASH);
    assert!(world.retiring().is_empty());
    assert_eq!(world.take_log().last().unwrap(), "reload aborted by 0.0 signal:11, 2 untouched");
    world.spawn(FIRST);
    world.ready(FIRST);
    assert!(world.retiring().is_empty(), "it is over");
    assert_eq!(world.generation(slot(0, 1)), 1);
}

#[test]
fn a_crash_elsewhere_does_not_end_a_reload() {
    let mut world = World::serving(&[1, 2]);
    world.event(reload(Scope::Group(1)));
    for _ in 0..2 {
        world.die(FIRST, CRASH);
        world.advance(ms(100));
        world.spawn(FIRST);
    }
    world.succeed(slot(1, 0), CLEAN);
    world.succeed(slot(1, 1), CLEAN);
    assert_eq!(world.take_log().last().unwrap(), "reloaded [1]");
}

#[test]
fn a_reload_replaces_processes_that_are_not_ready_too() {
    let mut world = World::new(&[1]);
    world.spawn(FIRST);
    world.event(reload(Scope::All));
    assert_eq!(world.retiring(), [FIRST], "it was forked before");

    let mut world = World::new(&[1]);
    world.event(reload(Scope::All));
    world.spawn(FIRST);
    world.ready(FIRST);
    assert_eq!(world.take_log().last().unwrap(), "reloaded [0]", "it was forked after");
}

#[test]
fn a_successor_that_cannot_be_forked_ends_a_reload() {
    let mut world = World::serving(&[2]);
    world.event(reload(Scope::All));
    world.die(FIRST, CLEAN);
    world.fail_spawn(FIRST);
    assert_eq!(world.take_log().last().unwrap(), "reload aborted by 0.0 not forked, 1 untouched");
}

#[test]
fn reloads_asked_for_during_a_reload_become_one() {
    let mut world = World::serving(&[1, 1, 1]);
    world.event(reload(Scope::Group(0)));
    world.event(reload(Scope::Group(1)));
    world.event(reload(Scope::Group(0)));
    world.event(reload(Scope::Group(9)));
    world.succeed(slot(0, 0), CLEAN);
    world.succeed(slot(0, 0), CLEAN);
    world.succeed(slot(1, 0), CLEAN);
    assert!(world.retiring().is_empty());
    let mut log = world.take_log();
    log.retain(|line| line.starts_with("reload"));
    assert_eq!(log, ["reload [0] Rolling", "reloaded [0]", "reload [0, 1] Rolling", "reloaded [0, 1]"]);
}

#[test]
fn a_reload_passes_over_a_slot_that_has_a_new_process_already() {
    let mut world = World::serving(&[2]);
    world.event(reload(Scope::All));
    world.succeed(slot(0, 1), CRASH);
    world.succeed(FIRST, CLEAN);
    assert_eq!(world.take_log().last().unwrap(), "reloaded [0]");
    assert_eq!(world.generation(slot(0, 1)), 2);
}

#[test]
fn a_reload_tries_a_failing_slot_without_delay() {
    let mut world = World::serving(&[1]);
    world.die(FIRST, CRASH);
    world.spawn(FIRST);
    world.die(FIRST, CRASH);
    assert!(world.asked.is_empty());
    world.event(reload(Scope::All));
    world.spawn(FIRST);
    world.ready(FIRST);
    assert_eq!(world.take_log().last().unwrap(), "reloaded [0]");
}

#[test]
fn a_stop_retires_all_and_kills_who_is_alive_at_its_bound() {
    let mut world = World::serving(&[2]);
    world.event(Event::Stop { within: ms(500) });
    assert_eq!(world.retiring(), [slot(0, 0), slot(0, 1)]);
    world.die(FIRST, CLEAN);
    assert!(!world.policy.is_finished());
    world.advance(ms(500));
    assert_eq!(world.killed(), [slot(0, 1)]);
    world.exit(slot(0, 1), CRASH);
    assert!(world.policy.is_finished());
}

#[test]
fn a_stop_says_once_a_second_whom_it_waits_for() {
    let mut world = World::serving(&[2]);
    world.event(Event::Stop { within: ms(2_500) });
    world.take_log();
    assert_eq!(world.policy.next_deadline(), Some(ms(1_000)));
    world.advance(ms(1_000));
    assert_eq!(world.take_log(), ["waiting for 2 slots, 1.5s left"]);
    world.exit(FIRST, CLEAN);
    world.advance(ms(1_000));
    assert_eq!(world.take_log().last().unwrap(), "waiting for 1 slots, 500ms left");
    world.exit(slot(0, 1), CLEAN);
    assert_eq!(world.policy.next_deadline(), None);
}

#[test]
fn a_stop_within_no_time_kills() {
    let mut world = World::serving(&[2]);
    world.event(Event::Stop { within: ms(0) });
    assert!(world.retiring().is_empty());
    assert_eq!(world.killed().len(), 2);
}

#[test]
fn a_second_stop_can_only_be_earlier() {
    let mut world = World::serving(&[1, 1]);
    world.die(slot(1, 0), CRASH);
    world.event(Event::Stop { within: ms(500) });
    world.event(Event::Stop { within: ms(9_000) });
    assert_eq!(world.policy.next_deadline(), Some(ms(500)));
    world.spawn(slot(1, 0));
    world.exit(FIRST, CLEAN);
    assert_eq!(world.policy.next_deadline(), Some(ms(500)), "for who comes late as well");
    world.event(Event::Stop { within: ms(0) });
    assert_eq!(world.killed(), [slot(1, 0)]);
}

#[test]
fn a_stop_gives_nobody_more_time_to_retire() {
    let mut world = World::serving(&[1]);
    world.event(Event::Retire { slot: FIRST });
    world.event(Event::Stop { within: ms(60_000) });
    world.advance(ms(3_000));
    assert_eq!(world.killed(), [FIRST]);
}

#[test]
fn a_stop_overtakes_everything_that_is_under_way() {
    let mut world = World::serving(&[4]);
    world.event(reload(Scope::All));
    world.exit(slot(0, 1), CRASH);
    world.die(slot(0, 2), CRASH);
    world.die(slot(0, 3), CRASH);
    world.spawn(slot(0, 3));
    world.die(slot(0, 3), CRASH);
    // 0.0 retires, 0.1 is not settled, 0.2 is being forked, 0.3 backs off.
    world.event(Event::Stop { within: ms(100) });
    assert_eq!(world.retiring(), [FIRST]);
    world.spawn(slot(0, 2));
    assert_eq!(world.retiring(), [FIRST, slot(0, 2)], "who comes late is asked to go as well");
    world.exit(FIRST, CLEAN);
    world.exit(slot(0, 2), CLEAN);
    assert!(world.policy.is_finished());
}

#[test]
fn without_slots_a_stop_is_over_at_once() {
    let mut world = World::new(&[]);
    assert!(!world.policy.is_finished());
    world.event(Event::Stop { within: ms(1_000) });
    assert!(world.policy.is_finished());
}

#[test]
fn groups_stop_one_after_the_other() {
    let mut world = World::serving(&[2, 0, 1]);
    world.event(Event::Stop { within: ms(1_000) });
    assert_eq!(world.retiring(), [slot(0, 0), slot(0, 1)]);
    // Who is needed meanwhile is replaced.
    world.succeed(slot(2, 0), CRASH);
    world.exit(slot(0, 1), CLEAN);
    assert!(!world.live[&slot(2, 0)].retired);
    world.exit(slot(0, 0), CLEAN);
    assert_eq!(world.retiring(), [slot(2, 0)]);
    world.exit(slot(2, 0), CLEAN);
    assert!(world.policy.is_finished());
}

#[test]
fn the_bound_of_a_stop_is_the_same_for_all_groups() {
    let mut world = World::serving(&[1, 1]);
    world.event(Event::Stop { within: ms(1_000) });
    world.advance(ms(1_000));
    assert_eq!(world.killed(), [slot(0, 0), slot(1, 0)]);
}

/// A group of two that serve, and one of one that is to stay.
fn with_permanent() -> World {
    let mut world = World::serving(&[2, 1]);
    world.policy.make_permanent(1);
    world
}

#[test]
fn who_is_to_stay_has_died_however_it_ends() {
    let mut world = with_permanent();
    let permanent = slot(1, 0);
    for (round, wait) in [0, 50, 100, 200, 400, 800, 1600, 3200, 5000].map(ms).into_iter().enumerate() {
        world.die(permanent, if round % 2 == 0 { CLEAN } else { CRASH });
        if round > 0 {
            assert_eq!(world.policy.next_deadline(), Some(world.now + wait), "though it had been ready");
        }
        world.advance(wait);
        world.spawn(permanent);
        world.ready(permanent);
    }
    world.take_log();
    world.die(permanent, CLEAN);
    assert_eq!(world.take_log(), ["failing 1.0 10 deaths 5s"]);
    world.advance(ms(5000));
    world.spawn(permanent);
    world.ready(permanent);
    world.advance(ms(10_000));
    world.die(permanent, CLEAN);
    assert!(world.asked.contains_key(&permanent), "at once after it was there for long");
    // The others' ends are as ever.
    for _ in 0..3 {
        world.die(FIRST, CLEAN);
        world.spawn(FIRST);
        world.ready(FIRST);
    }
}

#[test]
fn who_is_to_stay_is_reloaded_only_when_it_is_named() {
    let mut world = with_permanent();
    world.event(reload(Scope::All));
    for at in [slot(0, 0), slot(0, 1)] {
        world.succeed(at, CLEAN);
    }
    let log = world.take_log();
    assert_eq!((log[0].as_str(), log[log.len() - 1].as_str()), ("reload [0] Rolling", "reloaded [0]"));
    world.event(reload(Scope::Group(1)));
    world.succeed(slot(1, 0), CLEAN);
    assert_eq!(
        world.take_log(),
        ["reload [1] Rolling", "retiring 1.0", "started 1.0 #2", "ready 1.0 #2", "reloaded [1]"]
    );
}
