//! One schedule: who takes the next step is drawn, and what is drawn follows from the seed.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use swoole_supervisor::ExitStatus;

use super::front::SLOTS;
use super::ledger::{Item, PACKET_HEADER, REPLY_HEADER};
use super::stage::Stages;
use super::tally::{Breach, Kind, Tally, breach};
use super::world::{KILLED, World};

/// Steps before all calm down.
const STEPS: Range<usize> = 60..240;

pub(super) fn play(
    stages: &mut Stages,
    seed: u64,
    tally: &mut Tally,
    mut trace: Option<&mut Vec<String>>,
) -> Result<(), Breach> {
    let mut rng = Rng::with_seed(seed);
    let stage = stages.set(&mut rng)?;
    let mut world = World::new(stage, rng)?;
    let result = act(&mut world, &mut trace);
    if let Some(trace) = trace {
        trace.push(world.describe());
    }
    world.fronts.iter_mut().for_each(|front| front.end());
    world.ledger.tally.schedules = 1;
    tally.add(&world.ledger.tally);
    drop(world);
    if result? { stage.check_empty() } else { Ok(()) }
}

/// Whether everything was done in the end.
fn act(world: &mut World<'_>, trace: &mut Option<&mut Vec<String>>) -> Result<bool, Breach> {
    // Most servers have started when clients come.
    if world.rng.u8(..4) > 0 {
        world.come_to_rest(false)?;
        world.kind = false;
    }
    for reactor in 0..world.fronts.len() {
        for _ in 0..world.rng.usize(..SLOTS) {
            connect(world, reactor)?;
        }
    }
    let steps = world.rng.usize(STEPS);
    for _ in 0..steps {
        let (what, [worker, reactor, slot]) = step(world)?;
        if let Some(trace) = trace {
            trace.push(format!("  worker {worker}, reactor {reactor}, slot {slot}: {what}"));
        }
    }
    world.ledger.tally.steps += steps as u64;
    let in_order = world.rng.u8(..8) > 0;
    if in_order {
        world.come_to_rest(true)?;
        world.check_serving()?;
        world.ledger.check_done()?;
        world.fronts.iter().try_for_each(super::front::Front::check_empty)?;
    }
    let stuck = world.rng.usize(..8);
    if stuck < world.workers() {
        world.make_stuck(stuck);
    }
    let within = Duration::from_millis(world.rng.u64(..3000));
    world.stop(within)?;
    world.come_to_rest(false)?;
    world.check_stopped()?;
    let (left, packets) = (world.ledger.under_way(), world.fronts.iter().map(|front| front.packets()).sum());
    if left != packets {
        return breach(
            Kind::Leak,
            format!("{left} packets are not answered, and {packets} stand in the books"),
        );
    }
    Ok(in_order)
}

/// What a step was, with the numbers of the worker, the reactor and its slot.
type Step = (&'static str, [usize; 3]);

/// Takes one step.
fn step(world: &mut World<'_>) -> Result<Step, Breach> {
    let worker = world.rng.usize(..world.workers());
    let reactor = world.rng.usize(..world.fronts.len());
    let slot = world.rng.usize(..SLOTS);
    let what = match world.rng.u16(..1000) {
        0..340 => {
            let times = if world.rng.bool() { 1 } else { world.rng.usize(1..12) };
            for _ in 0..times {
                world.work(worker)?;
            }
            "the worker goes on"
        }
        340..440 => {
            world.fronts[reactor].drain(worker, &mut world.ledger)?;
            "the reactor takes replies of the worker"
        }
        440..580 => {
            let most = if world.rng.bool() { usize::MAX } else { world.rng.usize(1..2_000) };
            let copy = world.rng.u8(..4) == 0;
            world.fronts[reactor].read(slot, most, copy, &mut world.ledger)?;
            "the reactor reads from the client in the slot"
        }
        580..650 => {
            world.fronts[reactor].hand_over();
            "the reactor hands over what it has"
        }
        650..720 => {
            world.obey(reactor)?;
            "the reactor does what the master said"
        }
        720..770 => {
            world.learn();
            "the master hears from the manager"
        }
        770..820 => {
            world.look_at(worker)?;
            "the manager looks at the worker"
        }
        820..840 => {
            world.bury()?;
            "the manager hears that somebody is settled"
        }
        840..860 => {
            connect(world, reactor)?;
            "a client connects to the reactor"
        }
        860..960 => {
            send(world, reactor, slot);
            "the client in the reactor's slot sends"
        }
        960..964 => {
            world.fronts[reactor].leave(slot, &mut world.ledger);
            "the client in the reactor's slot leaves"
        }
        964..974 => {
            let times = [1, 20, 100, 1_000, 6_000];
            let time = Duration::from_millis(times[world.rng.usize(..times.len())]);
            world.pass(time)?;
            "time passes"
        }
        974..992 => {
            let segv = ExitStatus::Signaled { signal: 11, core_dumped: true };
            let status = [KILLED, segv, ExitStatus::Exited(1)][world.rng.usize(..3)];
            for _ in 0..world.rng.usize(..10) {
                world.work(worker)?;
            }
            world.die(worker, status);
            "the worker goes on, and dies"
        }
        992..997 => {
            world.retire(worker)?;
            "the worker is asked to retire"
        }
        _ => {
            world.reload()?;
            "a reload is asked for"
        }
    };
    Ok((what, [worker, reactor, slot]))
}

fn connect(world: &mut World<'_>, reactor: usize) -> Result<(), Breach> {
    let greeting =
        if world.rng.bool() { vec![size(&mut world.rng, world.ring, REPLY_HEADER)] } else { Vec::new() };
    world.fronts[reactor].connect(greeting, &mut world.ledger)
}

/// A client sends some packets at once.
fn send(world: &mut World<'_>, reactor: usize, slot: usize) {
    let World { rng, fronts, ledger, ring, .. } = world;
    let Some((client, stream)) = fronts[reactor].client(slot) else { return };
    for _ in 0..rng.usize(1..5) {
        let bytes = size(rng, *ring, PACKET_HEADER);
        let count = rng.usize(..4);
        let replies: Vec<usize> = (0..count).map(|_| size(rng, *ring, REPLY_HEADER)).collect();
        let poison = (rng.u8(..100) == 0).then(|| rng.usize(..=count));
        ledger.send(client, Item::new(bytes, replies, poison), stream);
    }
}

/// Bytes of a packet or of a reply, at least so many: most are small, some need several records or exceed a ring.
fn size(rng: &mut Rng, ring: usize, least: usize) -> usize {
    match rng.u8(..16) {
        0 => rng.usize(ring / 4..ring + ring / 2),
        1..4 => rng.usize(ring / 20..ring / 4),
        _ => rng.usize(least..200),
    }
}
