//! The way to the agent that does host changes once more in the guest ([`protocol::replay`]): one connection to it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fileshare::passthrough::coherence::{Action, Agent, Numbered, What};
use protocol::frame::{self, FrameError};
use protocol::replay::{self, Batch, Done, Name};

/// How long the agent may take to read a batch, or to answer it. One that takes longer hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The agent at the other end of a stream.
pub(super) struct GuestAgent {
    stream: Patient,
    /// That of the next batch.
    number: u64,
    /// Why it was lost, for whoever tells that.
    why_lost: WhyLost,
}

/// Why an agent was lost; empty when nobody has said.
pub(super) type WhyLost = std::sync::Arc<Mutex<Option<String>>>;

impl GuestAgent {
    /// The agent that answers on `stream`. It gets `patience` for each step, not counting the time that `paused` says its
    /// machine stands still.
    pub(super) fn new(
        stream: UnixStream,
        patience: Duration,
        paused: impl Fn() -> bool + Send + 'static,
        why_lost: WhyLost,
    ) -> io::Result<GuestAgent> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(GuestAgent {
            stream: Patient {
                stream,
                patience,
                paused: Box::new(paused),
            },
            number: 1,
            why_lost,
        })
    }

    /// Has one frame of actions performed.
    fn exchange(&mut self, actions: Vec<replay::Numbered>) -> io::Result<Vec<i32>> {
        let expected = actions.len();
        let batch = Batch {
            number: self.number,
            actions,
        };
        self.number += 1;
        frame::write(&mut self.stream, &batch).map_err(io_error)?;
        let done: Done = frame::read(&mut self.stream).map_err(io_error)?;
        if done.number != batch.number || done.errors.len() != expected {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it was given batch {} with {expected} actions and answered batch {} with {}",
                    batch.number,
                    done.number,
                    done.errors.len()
                ),
            ));
        }
        Ok(done.errors)
    }

    /// Has actions performed in as many frames as they need.
    fn exchange_all(&mut self, batch: &[Numbered]) -> io::Result<Vec<i32>> {
        let mut errors = Vec::with_capacity(batch.len());
        let mut frame = Vec::new();
        let mut room = Batch::ROOM;
        for numbered in batch {
            let numbered = on_the_wire(numbered);
            if numbered.room() > room {
                errors.extend(self.exchange(std::mem::take(&mut frame))?);
                room = Batch::ROOM;
            }
            room = room.saturating_sub(numbered.room());
            frame.push(numbered);
        }
        if !frame.is_empty() {
            errors.extend(self.exchange(frame)?);
        }
        Ok(errors)
    }
}

impl Agent for GuestAgent {
    fn perform(&mut self, batch: &[Numbered]) -> io::Result<Vec<i32>> {
        self.exchange_all(batch).inspect_err(|error| {
            let mut why = self.why_lost.lock().unwrap_or_else(PoisonError::into_inner);
            *why = Some(error.to_string());
        })
    }
}

/// An action as the agent is told it.
fn on_the_wire(numbered: &Numbered) -> replay::Numbered {
    let name = |name: &[u8]| Name::new(name);
    let action = match &numbered.action {
        Action::Make {
            parent,
            name: new,
            what,
        } => replay::Action::Make {
            parent: *parent,
            name: name(new),
            what: match what {
                What::File => replay::What::File,
                What::Directory => replay::What::Directory,
                What::Fifo => replay::What::Fifo,
                What::Socket => replay::What::Socket,
                What::Symlink { target } => replay::What::Symlink { target: name(target) },
            },
        },
        Action::Remove {
            parent,
            name: old,
            directory,
        } => replay::Action::Remove {
            parent: *parent,
            name: name(old),
            directory: *directory,
        },
        Action::Rename {
            from,
            name: old,
            to,
            new_name,
            exchange,
        } => replay::Action::Rename {
            from: *from,
            name: name(old),
            to: *to,
            new_name: name(new_name),
            exchange: *exchange,
        },
        Action::Touch {
            parent,
            name: touched,
            open,
            modified,
            attributes,
            ..
        } => replay::Action::Touch {
            parent: *parent,
            name: touched.as_deref().map(name),
            open: *open,
            modified: *modified,
            attributes: *attributes,
        },
        Action::Refresh { node } => replay::Action::Refresh { node: *node },
        Action::Confirm {
            parent,
            name: confirmed,
        } => replay::Action::Confirm {
            parent: *parent,
            name: name(confirmed),
        },
        Action::DropCaches => replay::Action::DropCaches,
    };
    replay::Numbered {
        number: numbered.number,
        action,
    }
}

fn io_error(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        FrameError::Closed => io::Error::new(io::ErrorKind::UnexpectedEof, error),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// A stream with a time limit that does not count while the machine is paused. A pause that ends just before the limit
/// leaves the agent little time; should that be too little, it is lost and connected again, and no harm is done.
struct Patient {
    stream: UnixStream,
    patience: Duration,
    paused: Box<dyn Fn() -> bool + Send>,
}

impl Patient {
    fn try_again(&self, result: io::Result<usize>) -> Option<io::Result<usize>> {
        match result {
            // What Linux says when the time is up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let late = || {
                    let message = format!("it did nothing for {:?}", self.patience);
                    Err(io::Error::new(io::ErrorKind::TimedOut, message))
                };
                (!(self.paused)()).then(late)
            }
            result => Some(result),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = self.stream.read(buffer);
            if let Some(result) = self.try_again(result) {
                return result;
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = self.stream.write(bytes);
            if let Some(result) = self.try_again(result) {
                return result;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::JoinHandle;

    use super::*;

    /// An agent that the test plays: for each of `answers` it reads a batch and gives the answer.
    fn agent(answers: Vec<fn(&Batch) -> Done>) -> (GuestAgent, JoinHandle<Vec<Batch>>) {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let plays = std::thread::spawn(move || {
            let mut read = Vec::new();
            for answer in answers {
                let batch = frame::read(&mut guest).unwrap();
                frame::write(&mut guest, &answer(&batch)).unwrap();
                read.push(batch);
            }
            read
        });
        let agent = GuestAgent::new(host, PATIENCE, || false, WhyLost::default()).unwrap();
        (agent, plays)
    }

    fn error(number: u32) -> i32 {
        if number.is_multiple_of(2) { 0 } else { libc::ESTALE }
    }

    /// Every action succeeds, but for those of odd numbers.
    fn odd_are_stale(batch: &Batch) -> Done {
        let errors = batch.actions.iter().map(|numbered| error(numbered.number));
        Done {
            number: batch.number,
            errors: errors.collect(),
        }
    }

    fn numbered(actions: impl IntoIterator<Item = Action>) -> Vec<Numbered> {
        (1..)
            .zip(actions)
            .map(|(number, action)| Numbered { number, action })
            .collect()
    }

    fn bytes(text: &str) -> Box<[u8]> {
        text.as_bytes().into()
    }

    #[test]
    fn the_staging_directory_is_the_same_on_both_sides() {
        use fileshare::passthrough::coherence::{STAGING, STAGING_PARENT};
        assert_eq!(STAGING, replay::STAGING);
        assert_eq!(STAGING_PARENT, replay::STAGING_NODE);
    }

    #[test]
    fn every_action_arrives_as_it_was_meant() {
        let make = |what| Action::Make {
            parent: 1,
            name: bytes("a"),
            what,
        };
        let target = Box::from([0xff]);
        let batch = numbered([
            make(What::File),
            make(What::Directory),
            make(What::Fifo),
            make(What::Socket),
            make(What::Symlink { target }),
            Action::Remove {
                parent: 2,
                name: bytes("b"),
                directory: true,
            },
            Action::Rename {
                from: 0,
                name: bytes("c"),
                to: 3,
                new_name: bytes("d"),
                exchange: true,
            },
            Action::Touch {
                parent: 4,
                name: None,
                node: None,
                open: true,
                modified: false,
                attributes: true,
            },
            Action::Touch {
                parent: 4,
                name: Some(bytes("e")),
                node: Some(9),
                open: false,
                modified: true,
                attributes: false,
            },
            Action::Refresh { node: 5 },
            Action::Confirm {
                parent: 6,
                name: bytes("f"),
            },
            Action::DropCaches,
        ]);
        let (mut agent, plays) = agent(vec![odd_are_stale, odd_are_stale]);
        let errors = agent.perform(&batch).unwrap();
        assert_eq!(errors[..4], [libc::ESTALE, 0, libc::ESTALE, 0]);
        assert_eq!(errors.len(), batch.len());
        agent.perform(&batch[..1]).unwrap();

        let wire_make = |what| replay::Action::Make {
            parent: 1,
            name: "a".into(),
            what,
        };
        let target = Name::new([0xff]);
        let expected = [
            wire_make(replay::What::File),
            wire_make(replay::What::Directory),
            wire_make(replay::What::Fifo),
            wire_make(replay::What::Socket),
            wire_make(replay::What::Symlink { target }),
            replay::Action::Remove {
                parent: 2,
                name: "b".into(),
                directory: true,
            },
            replay::Action::Rename {
                from: 0,
                name: "c".into(),
                to: 3,
                new_name: "d".into(),
                exchange: true,
            },
            replay::Action::Touch {
                parent: 4,
                name: None,
                open: true,
                modified: false,
                attributes: true,
            },
            replay::Action::Touch {
                parent: 4,
                name: Some("e".into()),
                open: false,
                modified: true,
                attributes: false,
            },
            replay::Action::Refresh { node: 5 },
            replay::Action::Confirm {
                parent: 6,
                name: "f".into(),
            },
            replay::Action::DropCaches,
        ];
        let read = plays.join().unwrap();
        let actions: Vec<_> = read[0].actions.iter().map(|numbered| &numbered.action).collect();
        assert_eq!(actions, expected.iter().collect::<Vec<_>>());
        let numbers: Vec<_> = read[0].actions.iter().map(|numbered| numbered.number).collect();
        assert_eq!(numbers, (1..=12).collect::<Vec<_>>());
        assert_ne!(read[0].number, read[1].number);
    }

    #[test]
    fn what_does_not_fit_a_frame_goes_in_several() {
        // Each name may take 1.5 KiB of a frame of 1 MiB.
        let name: Box<[u8]> = vec![1; 255].into();
        let batch = numbered((0..1000).map(|_| Action::Remove {
            parent: 1,
            name: name.clone(),
            directory: false,
        }));
        let (mut agent, plays) = agent(vec![odd_are_stale, odd_are_stale]);
        let errors = agent.perform(&batch).unwrap();
        let expected: Vec<_> = (1..=1000).map(error).collect();
        assert_eq!(errors, expected);
        assert_eq!(plays.join().unwrap().len(), 2);
        assert!(agent.perform(&[]).unwrap().is_empty());
    }

    #[test]
    fn an_answer_to_something_else_is_a_lost_agent() {
        let another_number: fn(&Batch) -> Done = |batch| Done {
            number: batch.number + 1,
            ..odd_are_stale(batch)
        };
        let another_length: fn(&Batch) -> Done = |batch| Done {
            number: batch.number,
            errors: vec![0, 0],
        };
        for answer in [another_number, another_length] {
            let (mut agent, plays) = agent(vec![answer]);
            let error = agent.perform(&numbered([Action::DropCaches])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let why = agent.why_lost.lock().unwrap().clone();
            assert!(why.unwrap().starts_with("it was given batch 1 "));
            plays.join().unwrap();
        }
    }

    #[test]
    fn an_agent_that_has_gone_is_lost() {
        let (mut agent, plays) = agent(vec![]);
        plays.join().unwrap();
        assert!(agent.perform(&numbered([Action::DropCaches])).is_err());
        assert!(agent.why_lost.lock().unwrap().is_some());
    }

    #[test]
    fn an_agent_that_hangs_is_lost_and_one_that_is_paused_is_waited_for() {
        let (host, _guest) = UnixStream::pair().unwrap();
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let paused = || ASKED.fetch_add(1, Ordering::Relaxed) < 3;
        let moment = Duration::from_millis(1);
        let mut agent = GuestAgent::new(host, moment, paused, WhyLost::default()).unwrap();
        let error = agent.perform(&numbered([Action::DropCaches])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(ASKED.load(Ordering::Relaxed), 4);
    }
}
