//! The host's resolver: which servers are asked, in which order, and how long.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use protocol::dns::message::{self, NOT_IMPLEMENTED, Query, REFUSED, SERVER_FAILURE};
use tokio::time::{Instant, sleep_until};

use super::fresh::Fresh;
use super::hosts::Hosts;
use super::resolv_conf::ResolvConf;
use super::{HOSTS, RESOLV_CONF, ask, local};

/// How long one server is waited for before the next is asked as well. Programs in containers give up after five seconds, so
/// the C library's five would be of no use to them; what comes late is taken all the same.
const NEXT: Duration = Duration::from_millis(1500);
/// How long all of them together are waited for: longer than anybody who asks waits.
const LONGEST: Duration = Duration::from_secs(15);

/// How many times servers are asked for one question. Each may take a socket until the end.
const MOST_ASKED: usize = 6;

/// Resolves names as this host does.
#[derive(Debug)]
pub struct Resolver {
    resolv_conf: Fresh<ResolvConf>,
    hosts: Fresh<Hosts>,
    port: u16,
    turn: AtomicUsize,
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver::with(Path::new(RESOLV_CONF), Path::new(HOSTS), 53)
    }
}

impl Resolver {
    /// One with other files, whose servers listen on another port.
    pub(super) fn with(resolv_conf: &Path, hosts: &Path, port: u16) -> Resolver {
        Resolver {
            resolv_conf: ResolvConf::fresh(resolv_conf),
            hosts: Hosts::fresh(hosts),
            port,
            turn: AtomicUsize::new(0),
        }
    }

    /// Answers a question; none when it is nothing that may be answered.
    pub async fn answer(self: &Arc<Self>, question: &[u8]) -> Option<Vec<u8>> {
        let query = match Query::parse(question) {
            Ok(query) => query,
            Err(not) => return message::refusal(question, not.code?),
        };
        let this = Arc::clone(self);
        // The files may have to be read, and are on a disk.
        let looked = tokio::task::spawn_blocking(move || {
            let here = local::answer(&query, &this.hosts.get());
            (query, here, this.resolv_conf.get())
        });
        let Ok((query, here, conf)) = looked.await else {
            return message::refusal(question, SERVER_FAILURE);
        };
        match here {
            Some(answer) => Some(answer),
            None => Some(self.ask_servers(&query, &conf).await),
        }
    }

    /// The first good answer of the host's name servers; else the first bad one, else that there is none.
    async fn ask_servers(&self, query: &Query, conf: &ResolvConf) -> Vec<u8> {
        let mut servers: Vec<SocketAddr> = conf
            .servers
            .iter()
            .filter_map(|server| server.place(self.port))
            .collect();
        if conf.rotate && !servers.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % servers.len();
            servers.rotate_left(turn);
        }
        let patience = conf.timeout.min(NEXT);
        let end = Instant::now() + LONGEST.min(conf.timeout * conf.attempts + patience * 2);
        let times = MOST_ASKED.min(servers.len() * conf.attempts as usize);
        let mut to_ask: VecDeque<SocketAddr> = servers.iter().copied().cycle().take(times).collect();
        let mut asked = FuturesUnordered::new();
        let mut bad = None;
        loop {
            match to_ask.pop_front() {
                Some(server) => asked.push(async move { (server, ask::ask(server, query).await) }),
                None if asked.is_empty() => break,
                None => {}
            }
            let next = if to_ask.is_empty() {
                end
            } else {
                end.min(Instant::now() + patience)
            };
            let (server, result) = tokio::select! {
                Some(answered) = asked.next() => answered,
                () = sleep_until(next) => {
                    if Instant::now() >= end {
                        break;
                    }
                    continue;
                }
            };
            match result {
                Ok(answer) if !is_bad(&answer) => return answer,
                Ok(answer) => {
                    tracing::debug!(%server, code = message::code(&answer), "a name server does not answer");
                    bad.get_or_insert(answer);
                }
                Err(error) => tracing::debug!(%server, %error, "a name server cannot be asked"),
            }
            // It would say the same again.
            to_ask.retain(|other| *other != server);
        }
        bad.unwrap_or_else(|| query.answer(SERVER_FAILURE, &[]))
    }
}

/// Whether another server may know better (what the C library takes for that).
fn is_bad(answer: &[u8]) -> bool {
    [SERVER_FAILURE, NOT_IMPLEMENTED, REFUSED].contains(&message::code(answer))
}
