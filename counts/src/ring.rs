//! The shared-memory ring, both ends in turn: what a record costs from `push` to `release`.

use std::hint::black_box;

use swoole_ipc::{Consumer, Producer, Ring};

use crate::Benchmark;

pub(crate) const BENCHMARKS: &[Benchmark] = &[
    ("ring/one-128", |times| records(&[&[7; 128]], 1, times)),
    ("ring/batch-128", |times| records(&[&[7; 128]], 16, times)),
    ("ring/one-4096", |times| records(&[&[7; 4096]], 1, times)),
    ("ring/batch-4096", |times| records(&[&[7; 4096]], 16, times)),
    // What the framework writes: a header of its own and the packet.
    ("ring/header-and-128", |times| records(&[&[1; 16], &[7; 128]], 1, times)),
];

/// Several batches fit, and none of the sizes divides it: records lie across its end as well.
const CAPACITY: usize = 256 << 10;

fn records(parts: &[&[u8]], batch: usize, times: usize) {
    let ring = Ring::create("counts", CAPACITY).expect("memory for a ring");
    let mut producer = ring.producer().expect("nobody else has the side");
    let mut consumer = ring.consumer().expect("nobody else has the side");
    for _ in 0..times / batch {
        write(&mut producer, black_box(parts), batch);
        read(&mut consumer, batch);
    }
}

fn write(producer: &mut Producer, parts: &[&[u8]], batch: usize) {
    producer.refresh().expect("an honest consumer");
    for _ in 0..batch {
        producer.push(black_box(1), parts).expect("there is room for a batch");
    }
    producer.publish();
}

fn read(consumer: &mut Consumer, batch: usize) {
    let mut count = 0;
    while let Some(record) = consumer.next().expect("an honest producer") {
        black_box(record);
        count += 1;
    }
    assert_eq!(count, batch);
    consumer.release();
}
