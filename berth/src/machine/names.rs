//! Names in a machine that runs: the stream on which its guest asks is kept open, and its containers get the host's search
//! domains when these change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::ports;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::control::Control;
use super::handle::Handle;
use super::state::State;
use crate::config::Config;
use crate::dns::{self, FileWatch, RESOLV_CONF, ResolvConf, Resolver};
use crate::exit::chain;
use crate::guest::GuestDial;

/// How long to wait before a stream that broke is opened again, and how long at most when that fails again and again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A stream that was there for this long broke by chance.
const STEADY: Duration = Duration::from_secs(60);
/// How long the guest may take to write a file.
const SET_SEARCH: Duration = Duration::from_secs(30);

/// Keeps names working. Dropping it ends that.
#[derive(Debug)]
pub(super) struct NamesKeeper(Vec<JoinHandle<()>>);

impl Drop for NamesKeeper {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The search domains of a machine that starts now.
pub(super) fn search_domains(config: &Config) -> Vec<String> {
    config
        .search_domains()
        .unwrap_or_else(|| ResolvConf::load(Path::new(RESOLV_CONF)).search)
}

/// Keeps names working in a machine whose guest has called, and was given `search`.
pub(super) fn keep(machine: &Handle, config: &Config, search: Vec<String>) -> Option<NamesKeeper> {
    let dial = machine.dial()?;
    let mut tasks = vec![tokio::spawn(keep_answering(dial.clone(), machine.states()))];
    // Those of the configuration do not change.
    if config.search_domains().is_none() {
        tasks.push(tokio::spawn(follow_search(dial, machine.states(), search)));
    }
    Some(NamesKeeper(tasks))
}

/// A guest that stands still takes no connection.
async fn not_paused(states: &mut watch::Receiver<State>) {
    // That the sender is gone is not for this to deal with.
    let _ = states.wait_for(|state| *state != State::Paused).await;
}

async fn keep_answering(dial: GuestDial, mut states: watch::Receiver<State>) {
    let resolver = Arc::new(Resolver::default());
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        not_paused(&mut states).await;
        let since = Instant::now();
        let ended = match dial.connect(ports::DNS).await {
            Ok(stream) => {
                tracing::debug!("the guest can ask for names");
                let ended = dns::serve(stream, Arc::clone(&resolver)).await;
                ended.map_or_else(|error| chain(&error.into()), |()| "the guest closed it".into())
            }
            Err(error) => chain(&error.into()),
        };
        if !matches!(
            *states.borrow(),
            State::Starting { .. } | State::Running | State::Paused
        ) {
            // Its guest has gone, as it was to.
            return;
        }
        if since.elapsed() >= STEADY {
            (pause, told) = (FIRST_PAUSE, false);
        }
        if told {
            tracing::debug!("no stream for the guest's names: {ended}");
        } else {
            tracing::warn!("no stream for the guest's names: {ended}; it is opened again");
        }
        told = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tells the guest the host's search domains whenever they differ from those it was `told`.
async fn follow_search(dial: GuestDial, mut states: watch::Receiver<State>, mut told: Vec<String>) {
    let control = Control::new(dial);
    let path = Path::new(RESOLV_CONF);
    loop {
        // Before the file is read, so that no change is missed.
        let watch = FileWatch::new(path);
        let read = tokio::task::spawn_blocking(move || ResolvConf::load(path).search).await;
        if let Ok(search) = read
            && search != told
        {
            not_paused(&mut states).await;
            match control.set_search(search.clone(), SET_SEARCH).await {
                Ok(()) => {
                    tracing::info!(?search, "containers have other search domains from now on");
                    told = search;
                }
                // With the next change it is tried again.
                Err(error) => tracing::warn!("{}", chain(&error.into())),
            }
        }
        let changed = match watch {
            Ok(watch) => watch.changed().await,
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "cannot watch {RESOLV_CONF}: the machine keeps the search domains it has");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use protocol::dns::Numbered;
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::guest::DialError;

    /// `host.docker.internal`, any type, from the beginning of a message.
    fn question() -> Vec<u8> {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["host", "docker", "internal"] {
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
        bytes
    }

    #[tokio::test]
    async fn a_stream_that_breaks_is_opened_again_and_a_guest_that_refuses_is_asked_again() {
        let (sender, mut streams) = mpsc::unbounded_channel();
        let attempts = Arc::new(Mutex::new(0));
        let dial = GuestDial::new(move |port| {
            let mut attempts = attempts.lock().unwrap();
            *attempts += 1;
            let result = if *attempts == 2 {
                Err(DialError::Refused(port))
            } else {
                let (host, guest) = StdUnixStream::pair().unwrap();
                guest.set_nonblocking(true).unwrap();
                sender.send(UnixStream::from_std(guest).unwrap()).unwrap();
                Ok(host)
            };
            std::future::ready(result).boxed()
        });
        let states = watch::channel(State::Running).1;
        let keeper = NamesKeeper(vec![tokio::spawn(keep_answering(dial, states))]);
        for number in 1..=2 {
            let mut guest = streams.recv().await.unwrap();
            let message = question();
            Numbered { number, message }.write(&mut guest).await.unwrap();
            let answer = Numbered::read(&mut guest).await.unwrap().unwrap();
            assert_eq!(answer.number, number);
            assert!(answer.message.ends_with(&[192, 168, 127, 1]));
        }
        drop(keeper);
        assert!(streams.recv().await.is_none_or(|_| streams.is_closed()));
    }
}
