//! What a worker asks of its manager, in one word of its row: it may not signal a process of another user, or one outside its
//! sandbox.

/// A bit each. Above them, the worker that is to retire, plus 1.
const RELOAD: u64 = 1;
const RELOAD_TASK_WORKERS: u64 = 2;
const SHUTDOWN: u64 = 4;
const RETIRE_SHIFT: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    Reload,
    ReloadTaskWorkers,
    Shutdown,
    Retire(u16),
}

/// The word with one request more; `None` if another worker is to retire already.
pub(super) fn add(asked: u64, request: Request) -> Option<u64> {
    let retire = |worker: u16| (u64::from(worker) + 1) << RETIRE_SHIFT;
    match request {
        Request::Reload => Some(asked | RELOAD),
        Request::ReloadTaskWorkers => Some(asked | RELOAD_TASK_WORKERS),
        Request::Shutdown => Some(asked | SHUTDOWN),
        Request::Retire(worker) => match asked >> RETIRE_SHIFT {
            0 => Some(asked | retire(worker)),
            _ => (asked >> RETIRE_SHIFT == u64::from(worker) + 1).then_some(asked),
        },
    }
}

/// All that a word asks for. Any word is possible; a number that is no worker's means nothing.
pub(super) fn all(asked: u64) -> Vec<Request> {
    let flags = [
        (RELOAD, Request::Reload),
        (RELOAD_TASK_WORKERS, Request::ReloadTaskWorkers),
        (SHUTDOWN, Request::Shutdown),
    ];
    let flags = flags.into_iter().filter(|(bit, _)| asked & bit != 0).map(|(_, request)| request);
    let retire = (asked >> RETIRE_SHIFT).checked_sub(1).and_then(|worker| u16::try_from(worker).ok());
    flags.chain(retire.map(Request::Retire)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_that_was_added_is_there_once(
            reload: bool, tasks: bool, shutdown: bool, retire in proptest::option::of(0..=u16::MAX)
        ) {
            let wanted: Vec<Request> = [
                reload.then_some(Request::Reload),
                tasks.then_some(Request::ReloadTaskWorkers),
                shutdown.then_some(Request::Shutdown),
                retire.map(Request::Retire),
            ]
            .into_iter()
            .flatten()
            .collect();
            let twice = wanted.iter().chain(&wanted);
            let asked = twice.fold(0, |asked, request| add(asked, *request).unwrap());
            prop_assert_eq!(all(asked), wanted);
        }

        #[test]
        fn any_word_means_something_or_nothing(asked: u64) {
            prop_assert!(all(asked).len() <= 4);
        }
    }

    #[test]
    fn only_one_worker_is_asked_to_retire_at_a_time() {
        let asked = add(0, Request::Retire(7)).unwrap();
        assert_eq!(add(asked, Request::Retire(8)), None);
        assert_eq!(add(asked, Request::Retire(7)), Some(asked));
    }
}
