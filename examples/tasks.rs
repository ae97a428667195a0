//! Slow work in task workers, with progress: thumbnails.
//!
//! A client sends an image as a PPM file (netpbm's, which most programs read), its length in four bytes before it. The
//! answer is a PPM file, too, of at most 160 pixels each way, whose comments say how far the work is while it is under way:
//!
//! ```text
//! $ cargo run --release --example tasks &
//! $ perl -e 'print "P6 1600 1200 255\n"; for $y (0..1199) { print pack "C3", $_ / 7, $y / 5, ($_ ^ $y) & 255 for 0..1599 }' > image.ppm
//! $ perl -0777 -ne 'print pack "N/a*", $_' image.ppm | nc 127.0.0.1 9502 | tee thumbnail.ppm | grep -a '^#'
//! # 1 of 8
//! ...
//! # 8 of 8
//! $ file thumbnail.ppm
//! thumbnail.ppm: Netpbm image data, size = 160 x 120, rawbits, pixmap
//! ```
//!
//! The worker cuts the image into strips, and serves other clients while the task workers shrink them. Kill one of those
//! (`pkill -9 -f 'swoole: task worker'`): another one begins its strip again, because `task_retries` says so.

#[path = "tasks/image.rs"]
mod image;

use std::collections::HashMap;
use std::io::Write;

use image::{Header, Image, shrink};
use serde::{Deserialize, Serialize};
use swoole_server::config::{Config, Framing, Sources};
use swoole_server::typed::{self, Job, OnTask};
use swoole_server::{
    Error, Handler, OpenReply, Payload, Result, Server, Session, TaskId, TaskResult, TaskWorker, Worker,
};

/// Pixels of a thumbnail's longer side, at most.
const LONGEST: usize = 160;
/// Tasks for one image, at most.
const STRIPS: usize = 8;
/// Bytes of the length before an image.
const LENGTH: usize = 4;

/// What a task worker is asked for: to make one pixel of each square of `factor` times `factor`.
#[derive(Serialize, Deserialize)]
struct Shrink {
    width: usize,
    factor: usize,
    pixels: Vec<u8>,
}

impl Job for Shrink {
    const NAME: &str = "shrink";
    /// The pixels.
    type Output = Vec<u8>;
}

#[derive(Default)]
struct Thumbnails {
    pictures: HashMap<u64, Picture>,
    /// Of which picture each task is which strip.
    strips: HashMap<TaskId, (u64, usize)>,
    /// Pictures so far.
    begun: u64,
}

/// A thumbnail that is being made.
struct Picture {
    /// Who gets it. A worker that is to leave waits for as long as this is kept.
    reply: OpenReply,
    header: Header,
    strips: Vec<Option<Vec<u8>>>,
}

impl Handler for Thumbnails {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        let image = match Image::parse(&packet[LENGTH..]) {
            Ok(image) => image,
            Err(complaint) => {
                worker.send(client, format!("{complaint}\n").as_bytes())?;
                return worker.close(client);
            }
        };
        let (width, factor) = (image.width, image.width.max(image.height).div_ceil(LONGEST));
        let header = Header { width: width.div_ceil(factor), height: image.height.div_ceil(factor) };
        self.begun += 1;
        let mut strips = Vec::new();
        for strip in image.strips(header.height.div_ceil(STRIPS) * factor) {
            let task = worker.task(&Shrink { width, factor, pixels: strip.to_vec() })?;
            self.strips.insert(task, (self.begun, strips.len()));
            strips.push(None);
        }
        let reply = worker.open_reply(client);
        self.pictures.insert(self.begun, Picture { reply, header, strips });
        worker.send(client, b"P6\n")
    }

    fn on_task(&mut self, worker: &mut TaskWorker, task: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
        typed::dispatch::<Shrink>(self, worker, task, payload)
    }

    /// In the worker that has asked.
    fn on_finish(&mut self, worker: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
        let Some((id, strip)) = self.strips.remove(&task) else { return Ok(()) };
        // One of which another strip has failed before.
        let Some(picture) = self.pictures.get_mut(&id) else { return Ok(()) };
        let client = picture.reply.session();
        let mut told = Vec::new();
        let is_over = match result.and_then(Shrink::output) {
            Ok(pixels) => {
                picture.strips[strip] = Some(pixels);
                let (done, of) = (picture.strips.iter().flatten().count(), picture.strips.len());
                writeln!(told, "# {done} of {of}")?;
                if done == of {
                    write!(told, "{}", picture.header)?;
                    told.extend(picture.strips.iter().flatten().flatten());
                }
                done == of
            }
            Err(error) => {
                writeln!(told, "# sorry: {error}")?;
                true
            }
        };
        if is_over {
            self.pictures.remove(&id);
        }
        worker.send(client, &told)?;
        if is_over { worker.close(client) } else { Ok(()) }
    }
}

/// In a task worker.
impl OnTask<Shrink> for Thumbnails {
    fn on_task(&mut self, _: &mut TaskWorker, _: TaskId, job: Shrink) -> Result<Vec<u8>> {
        Ok(shrink(&job.pixels, job.width, job.factor))
    }
}

fn main() -> Result<()> {
    let mut defaults = Config::default();
    defaults.listen.push("tcp://127.0.0.1:9502".parse().map_err(Error::other)?);
    defaults.framing = Framing::Length;
    defaults.package_max_length = 64 << 20;
    defaults.task_worker_num = 2;
    defaults.task_retries = 3;
    Server::new(Sources::new(defaults).load_process()?).run(Thumbnails::default())
}
