//! Tasks with types, behind the feature `typed`: what is asked is a [`Job`], what comes back is its output.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use swoole_server::typed::{self, Job, OnTask};
//! use swoole_server::*;
//!
//! #[derive(Serialize, Deserialize)]
//! struct Resize {
//!     width: u32,
//!     pixels: Vec<u8>,
//! }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Thumbnail(Vec<u8>);
//!
//! impl Job for Resize {
//!     const NAME: &str = "resize";
//!     type Output = Thumbnail;
//! }
//!
//! struct Thumbnails;
//!
//! impl OnTask<Resize> for Thumbnails {
//!     fn on_task(&mut self, _: &mut TaskWorker, _: TaskId, job: Resize) -> Result<Thumbnail> {
//!         Ok(Thumbnail(job.pixels.into_iter().step_by(job.width.max(1) as usize).collect()))
//!     }
//! }
//!
//! impl Handler for Thumbnails {
//!     fn on_receive(&mut self, worker: &mut Worker, _: Session, packet: &[u8]) -> Result<()> {
//!         worker.task(&Resize { width: 80, pixels: packet.to_vec() }).map(drop)
//!     }
//!
//!     fn on_task(&mut self, worker: &mut TaskWorker, task: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
//!         typed::dispatch::<Resize>(self, worker, task, payload)
//!     }
//!
//!     fn on_finish(&mut self, _: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
//!         match result.and_then(Resize::output) {
//!             Ok(Thumbnail(pixels)) => println!("{task}: {} bytes", pixels.len()),
//!             Err(error) => println!("{task}: {error}"),
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//!
//! A handler of several kinds implements [`OnTask`] for each, and names them all: `typed::dispatch::<(Resize, Rotate)>(…)`.
//! [`Worker::task_wait`](crate::Worker::task_wait) returns the output itself.
//!
//! What travels is the job's name and its fields, as [postcard](https://docs.rs/postcard) writes them; the output goes
//! back without a name. Bytes that are no such thing are an error, whoever has written them.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Payload, TaskError, TaskId, TaskResult, TaskWorker};
use crate::error::{Error, Result};

/// Work that can be asked for. It is a [`Payload`], so [`Worker::task`](crate::Worker::task) and its kin take it.
pub trait Job: Serialize + DeserializeOwned {
    /// Tells it from other jobs of the same server. Who changes what the fields mean chooses another one: a task may wait
    /// while the program is replaced.
    const NAME: &str;

    /// What comes of it.
    type Output: Serialize + DeserializeOwned;
}

impl<J: Job> Payload for J {
    type Output = J::Output;

    fn encode(&self) -> Result<Cow<'_, [u8]>> {
        encode(&(J::NAME, self), || format!("job {}", J::NAME)).map(Cow::Owned)
    }

    fn output(result: Vec<u8>) -> TaskResult<J::Output> {
        decode(&result).map_err(|error| TaskError::Undecodable(format!("output of {}: {error}", J::NAME)))
    }
}

/// A handler that does jobs of this kind.
pub trait OnTask<J: Job> {
    /// As [`Handler::on_task`](crate::Handler::on_task), for one kind of job.
    ///
    /// # Errors
    ///
    /// Whatever hinders it: the worker that has asked is told.
    fn on_task(&mut self, worker: &mut TaskWorker, task: TaskId, job: J) -> Result<J::Output>;
}

/// Does a task of whichever of these kinds it is: [`Handler::on_task`](crate::Handler::on_task) for who has
/// [`OnTask`]. `J` is a [`Job`], or a tuple of up to eight of them.
///
/// # Errors
///
/// That of `OnTask`; [`Error::UnknownJob`] if it is none of them, [`Error::Decode`] if its fields are not what its name
/// says, [`Error::Encode`] if its output cannot be made bytes of.
pub fn dispatch<J>(
    handler: &mut impl OnTasks<J>,
    worker: &mut TaskWorker,
    task: TaskId,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let (name, fields) = open(task, payload)?;
    let done = handler.on_tasks(worker, Call { task, name, fields });
    done.unwrap_or_else(|| Err(Error::UnknownJob { task, name: name.into() }))
}

/// A handler that has [`OnTask`] for each of these jobs.
pub trait OnTasks<J> {
    #[doc(hidden)]
    fn on_tasks(&mut self, worker: &mut TaskWorker, call: Call<'_>) -> Option<Result<Vec<u8>>>;
}

/// A task whose job is not known yet.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    task: TaskId,
    name: &'a str,
    fields: &'a [u8],
}

impl Call<'_> {
    /// The job, if it is of this kind.
    fn job<J: Job>(&self) -> Option<Result<J>> {
        let Call { task, name, fields } = *self;
        (name == J::NAME).then(|| {
            decode(fields).map_err(|source| Error::Decode {
                what: format!("job {name} of task {task}"),
                source: source.into(),
            })
        })
    }
}

impl<J: Job, H: OnTask<J>> OnTasks<J> for H {
    fn on_tasks(&mut self, worker: &mut TaskWorker, call: Call<'_>) -> Option<Result<Vec<u8>>> {
        let job = call.job::<J>()?;
        let output = job.and_then(|job| self.on_task(worker, call.task, job));
        Some(output.and_then(|output| {
            encode(&output, || format!("the output of job {}, task {}", J::NAME, call.task))
        }))
    }
}

macro_rules! tuples {
    ($($job:ident)*) => {
        impl<$($job: Job,)* H: $(OnTask<$job> +)*> OnTasks<($($job,)*)> for H {
            fn on_tasks(&mut self, worker: &mut TaskWorker, call: Call<'_>) -> Option<Result<Vec<u8>>> {
                None$(.or_else(|| OnTasks::<$job>::on_tasks(self, worker, call)))*
            }
        }
    };
}

tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G I);

/// The name of a task's job, and what follows it.
fn open(task: TaskId, payload: &[u8]) -> Result<(&str, &[u8])> {
    postcard::take_from_bytes(payload).map_err(|source| Error::Decode {
        what: format!("the name of a job, task {task}"),
        source: source.into(),
    })
}

fn encode(value: &impl Serialize, what: impl FnOnce() -> String) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|source| Error::Encode { what: what(), source: source.into() })
}

/// All of the bytes, or none of them are right.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes are too many", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    const TASK: TaskId = TaskId { asker: 3, generation: 1, number: 7 };

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    struct Resize {
        size: (u32, Option<i64>),
        title: String,
        pixels: Vec<u8>,
        tags: BTreeMap<String, Shape>,
    }

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    enum Shape {
        Dot,
        Line(Box<[i16]>),
        Named { name: char },
    }

    impl Job for Resize {
        const NAME: &str = "resize";
        type Output = Vec<Shape>;
    }

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Nothing;

    impl Job for Nothing {
        const NAME: &str = "nothing";
        type Output = ();
    }

    /// Cannot be counted before, which postcard needs.
    struct Uncounted;

    impl Serialize for Uncounted {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serde::ser::SerializeSeq::end(serializer.serialize_seq(None)?)
        }
    }

    impl<'de> Deserialize<'de> for Uncounted {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Uncounted, D::Error> {
            <()>::deserialize(deserializer).map(|()| Uncounted)
        }
    }

    impl Job for Uncounted {
        const NAME: &str = "uncounted";
        type Output = ();
    }

    fn read<J: Job>(payload: &[u8]) -> Result<Option<J>> {
        let (name, fields) = open(TASK, payload)?;
        Call { task: TASK, name, fields }.job().transpose()
    }

    #[test]
    fn bytes_are_what_they_are() {
        fn same<P: Payload<Output = Vec<u8>> + ?Sized>(payload: &P) {
            assert_eq!(&*payload.encode().unwrap(), b"\x02ab");
            assert_eq!(P::output(b"ab".into()), Ok(b"ab".into()));
        }
        same(b"\x02ab");
        same(&b"\x02ab"[..]);
        same(&b"\x02ab".to_vec());
        same("\x02ab");
        same(&"\x02ab".to_owned());
    }

    #[test]
    fn a_job_is_known_by_its_name() {
        let payload = Nothing.encode().unwrap();
        assert_eq!(*payload, *b"\x07nothing");
        assert_eq!(read::<Nothing>(&payload).unwrap(), Some(Nothing));
        assert_eq!(read::<Resize>(&payload).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = |payload: &[u8]| read::<Nothing>(payload).unwrap_err().to_string();
        assert_eq!(told(b"\x07nothing!!"), "decode job nothing of task 3.1.7: 2 bytes are too many");
        let unnamed = "decode the name of a job, task 3.1.7: ";
        assert!(told(b"").starts_with(unnamed) && told(b"\x07noth").starts_with(unnamed));
        assert!(told(b"\x02\xff\xfe").starts_with(unnamed), "a name is text");
        let error = read::<Resize>(b"\x06resize\x01").unwrap_err();
        assert!(error.to_string().starts_with("decode job resize of task 3.1.7: "), "{error}");
        let error = Resize::output(b"\x05".into()).unwrap_err();
        assert!(error.to_string().starts_with("its result cannot be read: output of resize: "), "{error}");
        let error = Uncounted.encode().unwrap_err();
        assert!(error.to_string().starts_with("encode job uncounted: "), "{error}");
    }

    fn shape() -> impl Strategy<Value = Shape> {
        prop_oneof![
            Just(Shape::Dot),
            prop::collection::vec(any::<i16>(), 0..9).prop_map(|line| Shape::Line(line.into())),
            any::<char>().prop_map(|name| Shape::Named { name }),
        ]
    }

    prop_compose! {
        fn job()(
            size in any::<(u32, Option<i64>)>(),
            title in any::<String>(),
            pixels in prop::collection::vec(any::<u8>(), 0..300),
            tags in prop::collection::btree_map(any::<String>(), shape(), 0..5),
        ) -> Resize {
            Resize { size, title, pixels, tags }
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(job in job(), output in prop::collection::vec(shape(), 0..5)) {
            let payload = job.encode().unwrap();
            prop_assert_eq!(read::<Resize>(&payload).unwrap(), Some(job));
            let bytes = encode(&output, String::new).unwrap();
            prop_assert_eq!(Resize::output(bytes), Ok(output));
        }

        #[test]
        fn no_bytes_are_too_much(
            job in job(),
            at in any::<prop::sample::Index>(),
            noise in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let whole = job.encode().unwrap();
            let begin = 1 + Resize::NAME.len();
            let cut = &whole[..begin + at.index(whole.len() - begin)];
            prop_assert!(read::<Resize>(cut).is_err(), "a part is no whole");
            let mut wrong = cut.to_vec();
            wrong.extend_from_slice(&noise);
            // Another job, or an error.
            let _ = read::<Resize>(&wrong);
            let _ = read::<Resize>(&noise);
            let _ = Resize::output(noise);
        }
    }
}
