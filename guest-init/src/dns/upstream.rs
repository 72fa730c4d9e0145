//! The way to the host's resolver: questions over the stream that the host keeps open (`protocol::dns`).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::dns::Numbered;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::console::notice;
use crate::lock::lock;
use crate::services::Stream;

/// Questions under way at once, as many as the host takes. A container that asks for more is told that it failed.
const ROOM: usize = 256;
/// How long to wait for the host to dial again when the stream is not there.
const RECONNECT: Duration = Duration::from_secs(3);
/// How long the host may take. It gives up earlier itself; this is for a stream that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where questions go.
#[derive(Debug)]
pub(crate) struct Upstream {
    connection: watch::Sender<Option<Arc<Connection>>>,
    room: Semaphore,
}

/// One stream to the host.
#[derive(Debug)]
struct Connection {
    questions: mpsc::Sender<Numbered>,
    waiting: Mutex<Waiting>,
}

/// Who waits for an answer.
#[derive(Debug, Default)]
struct Waiting {
    last: u32,
    ended: bool,
    askers: HashMap<u32, oneshot::Sender<Vec<u8>>>,
}

/// An asker's place among those who wait; it is given up when this is dropped.
struct Place<'a> {
    connection: &'a Connection,
    number: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.connection.waiting).askers.remove(&self.number);
    }
}

impl Upstream {
    /// One without a stream yet.
    pub(crate) fn new() -> Arc<Upstream> {
        Arc::new(Upstream {
            connection: watch::Sender::new(None),
            room: Semaphore::new(ROOM),
        })
    }

    /// The host's answer; none when there is none to be had.
    pub(super) async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let _room = self.room.try_acquire().ok()?;
        // A stream that breaks takes its questions with it; whoever asks once more finds the next.
        for _ in 0..2 {
            let mut changes = self.connection.subscribe();
            let found = timeout(RECONNECT, changes.wait_for(Option::is_some)).await;
            let connection = found.ok()?.ok()?.clone()?;
            match timeout(PATIENCE, connection.ask(question)).await {
                Ok(Some(answer)) => return Some(answer),
                Ok(None) => self.forget(&connection),
                Err(_) => return None,
            }
        }
        None
    }

    /// Uses this connection no more.
    fn forget(&self, connection: &Arc<Connection>) {
        connection.end();
        self.connection.send_if_modified(|current| {
            let is_it = current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, connection));
            if is_it {
                *current = None;
            }
            is_it
        });
    }
}

impl Connection {
    /// The answer; none when the stream is broken.
    async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (asker, answer) = oneshot::channel();
        let number = lock(&self.waiting).add(asker)?;
        let _place = Place {
            connection: self,
            number,
        };
        let message = question.to_vec();
        self.questions.send(Numbered { number, message }).await.ok()?;
        answer.await.ok()
    }

    /// An answer has come. One that nobody waits for any more is late.
    fn answered(&self, answer: Numbered) {
        if let Some(asker) = lock(&self.waiting).askers.remove(&answer.number) {
            let _ = asker.send(answer.message);
        }
    }

    /// Lets go of all who wait.
    fn end(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.ended = true;
        waiting.askers.clear();
    }
}

impl Waiting {
    fn add(&mut self, asker: oneshot::Sender<Vec<u8>>) -> Option<u32> {
        if self.ended {
            return None;
        }
        // There are far fewer askers than numbers.
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.askers.contains_key(&self.last) {
                break;
            }
        }
        self.askers.insert(self.last, asker);
        Some(self.last)
    }
}

/// Asks over this stream until it ends or the host has opened another.
pub(crate) async fn serve(stream: impl Stream, upstream: Arc<Upstream>) -> io::Result<()> {
    let (mut from_host, mut to_host) = tokio::io::split(stream);
    let (questions, mut to_ask) = mpsc::channel::<Numbered>(ROOM);
    let connection = Arc::new(Connection {
        questions,
        waiting: Mutex::default(),
    });
    let mut changes = upstream.connection.subscribe();
    if let Some(before) = upstream.connection.send_replace(Some(connection.clone())) {
        before.end();
    }
    let asking = async {
        while let Some(question) = to_ask.recv().await {
            question.write(&mut to_host).await?;
        }
        Ok(())
    };
    let answering = async {
        while let Some(answer) = Numbered::read(&mut from_host).await? {
            connection.answered(answer);
        }
        Ok(())
    };
    let replaced = async {
        let other = |current: &Option<Arc<Connection>>| {
            !current
                .as_ref()
                .is_some_and(|current| Arc::ptr_eq(current, &connection))
        };
        // The sender is ours.
        let _ = changes.wait_for(other).await;
    };
    let ended = tokio::select! {
        ended = asking => ended,
        ended = answering => ended,
        () = replaced => {
            notice!("the host has a new connection for names");
            Ok(())
        }
    };
    upstream.forget(&connection);
    ended
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    fn connect(upstream: &Arc<Upstream>) -> UnixStream {
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(serve(guest, upstream.clone()));
        host
    }

    async fn asked(host: &mut UnixStream) -> Numbered {
        Numbered::read(host).await.unwrap().unwrap()
    }

    fn ask(upstream: &Arc<Upstream>, question: &'static [u8]) -> tokio::task::JoinHandle<Option<Vec<u8>>> {
        let upstream = upstream.clone();
        tokio::spawn(async move { upstream.ask(question).await })
    }

    #[tokio::test]
    async fn answers_find_their_askers_in_any_order() {
        let upstream = Upstream::new();
        let mut host = connect(&upstream);
        let (one, two) = (ask(&upstream, b"one"), ask(&upstream, b"two"));
        let (first, second) = (asked(&mut host).await, asked(&mut host).await);
        let stray = Numbered {
            number: 77,
            message: vec![1],
        };
        for answer in [second, stray, first] {
            answer.write(&mut host).await.unwrap();
        }
        assert_eq!(one.await.unwrap().unwrap(), b"one");
        assert_eq!(two.await.unwrap().unwrap(), b"two");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_host_an_asker_waits_a_little_for_it() {
        let upstream = Upstream::new();
        assert_eq!(upstream.ask(b"q").await, None);
        let asking = ask(&upstream, b"q");
        tokio::task::yield_now().await;
        let mut host = connect(&upstream);
        asked(&mut host).await.write(&mut host).await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), b"q");
    }

    #[tokio::test]
    async fn what_a_broken_stream_has_taken_is_asked_on_the_next() {
        let upstream = Upstream::new();
        let mut first = connect(&upstream);
        let asking = ask(&upstream, b"q");
        asked(&mut first).await;
        drop(first);
        let mut second = connect(&upstream);
        asked(&mut second).await.write(&mut second).await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), b"q");
    }

    #[tokio::test]
    async fn a_new_stream_takes_over() {
        let upstream = Upstream::new();
        let mut first = connect(&upstream);
        let asking = ask(&upstream, b"q");
        asked(&mut first).await;
        let mut second = connect(&upstream);
        asked(&mut second).await.write(&mut second).await.unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), b"q");
        assert_eq!(Numbered::read(&mut first).await.unwrap(), None);
    }

    #[tokio::test]
    async fn more_questions_than_there_is_room_for_fail_at_once() {
        let upstream = Upstream::new();
        let mut host = connect(&upstream);
        let asking: Vec<_> = (0..ROOM).map(|_| ask(&upstream, b"q")).collect();
        let mut questions = Vec::new();
        for _ in 0..ROOM {
            questions.push(asked(&mut host).await);
        }
        assert_eq!(upstream.ask(b"one more").await, None);
        for question in questions {
            question.write(&mut host).await.unwrap();
        }
        for asking in asking {
            assert!(asking.await.unwrap().is_some());
        }
    }
}
