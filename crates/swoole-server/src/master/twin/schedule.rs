//! One schedule: who takes the next step is drawn, and what is drawn follows from the seed.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use swoole_supervisor::ExitStatus;

use super::front::SLOTS;
use super::kernel::KILLED;
use super::ledger::{Item, Ledger, PACKET_HEADER, REPLY_HEADER};
use super::stage::Stages;
use super::tally::{Breach, Kind, Tally, breach};
use super::world::World;

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
        let (what, places) = step(world)?;
        note(trace, what, places);
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
    world.stop(within);
    // What happens while the last answers are waited for, and while workers leave.
    for leaving in [false, true] {
        world.kind = false;
        for _ in 0..if world.rng.bool() { world.rng.usize(..20) } else { 0 } {
            let (what, places) = last_step(world)?;
            note(trace, what, places);
        }
        if !leaving {
            world.leave();
        }
    }
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

fn note(trace: &mut Option<&mut Vec<String>>, what: &str, [worker, reactor, slot]: [usize; 3]) {
    if let Some(trace) = trace {
        trace.push(format!("  worker {worker}, reactor {reactor}, slot {slot}: {what}"));
    }
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
        720..760 => {
            world.learn();
            "the master hears from the manager"
        }
        760..775 => {
            world.read_note();
            "the master hears from a reactor"
        }
        775..785 => {
            world.notice(worker)?;
            "the master looks at its children, the worker among them"
        }
        785..822 => {
            world.look_at(worker)?;
            "the manager looks at the worker"
        }
        822..840 => {
            world.hear()?;
            "the manager hears from the master"
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
        974..990 => {
            let segv = ExitStatus::Signaled { signal: 11, core_dumped: true };
            let status = [KILLED, segv, ExitStatus::Exited(1)][world.rng.usize(..3)];
            for _ in 0..world.rng.usize(..10) {
                world.work(worker)?;
            }
            world.die(worker, status);
            "the worker goes on, and dies"
        }
        990..994 => {
            world.manager_dies()?;
            "the manager goes on, and dies"
        }
        994..995 => {
            world.manager_hangs();
            "the manager hangs if it starts"
        }
        995..996 => {
            world.lack_descriptors();
            "the master's descriptors run out, or come back"
        }
        996..998 => {
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

/// Takes one step of those that a stop leaves.
fn last_step(world: &mut World<'_>) -> Result<Step, Breach> {
    let worker = world.rng.usize(..world.workers());
    let reactor = world.rng.usize(..world.fronts.len());
    let what = match world.rng.u8(..16) {
        0..6 => {
            world.work(worker)?;
            "the worker goes on"
        }
        6..8 => {
            world.notice(worker)?;
            "the master looks at its children, the worker among them"
        }
        8..10 => {
            world.look_at(worker)?;
            "the manager looks at the worker"
        }
        10..12 => {
            world.hear()?;
            "the manager hears from the master"
        }
        12 => {
            world.obey(reactor)?;
            "the reactor does what the master said"
        }
        13 => {
            world.die(worker, KILLED);
            "the worker dies"
        }
        14 => {
            world.manager_dies()?;
            "the manager goes on, and dies"
        }
        _ => {
            world.manager_hangs();
            "the manager hangs"
        }
    };
    Ok((what, [worker, reactor, 0]))
}

fn connect(world: &mut World<'_>, reactor: usize) -> Result<(), Breach> {
    let mut greeting = Item::new(0, None);
    if world.rng.bool() {
        let World { rng, ledger, ring, .. } = world;
        handle(&mut greeting, rng, ledger, *ring, 1);
    }
    world.fronts[reactor].connect(greeting, &mut world.ledger)
}

/// A client sends some packets at once.
fn send(world: &mut World<'_>, reactor: usize, slot: usize) {
    let World { rng, fronts, ledger, ring, .. } = world;
    let Some((client, stream)) = fronts[reactor].client(slot) else { return };
    for _ in 0..rng.usize(1..5) {
        let bytes = size(rng, *ring, PACKET_HEADER);
        let replies = rng.usize(..4);
        let poison = (rng.u8(..100) == 0).then(|| rng.usize(..=replies));
        let mut item = Item::new(bytes, poison);
        handle(&mut item, rng, ledger, *ring, replies);
        ledger.send(client, item, stream);
    }
}

/// What a message has its handler do: so many replies, and rarely anything else.
fn handle(item: &mut Item, rng: &mut Rng, ledger: &Ledger, ring: usize, replies: usize) {
    for _ in 0..replies {
        let rare = rng.u8(..16);
        if rare < 2 && ledger.clients() > 0 {
            let to = rng.u32(..ledger.clients());
            ledger.note(item, to, size(rng, ring, REPLY_HEADER));
        }
        item.reply(size(rng, ring, REPLY_HEADER));
        match rare {
            2 => item.flush(),
            3 => item.bind(rng.u64(..4)),
            _ => {}
        }
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
