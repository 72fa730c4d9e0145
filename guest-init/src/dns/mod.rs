//! The name server that containers have: at an address of the guest's own, on UDP and TCP, with answers from the host
//! ([`upstream`]).
//!
//! So what the host can resolve containers can, by whatever way the host has at the moment, and nothing in the guest needs
//! to know which name servers those are. Processes of the guest reach the host's resolver only by asking here: the stream
//! to the host is the host's to open.

mod tcp;
mod udp;
mod upstream;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use protocol::dns::message::{self, Query, SERVER_FAILURE};
use tokio::net::{TcpListener, UdpSocket};

pub(crate) use self::upstream::{Upstream, serve};

/// Where every name server listens.
const PORT: u16 = 53;

/// Serves DNS on `address`, which the guest has, from now on.
pub(crate) async fn start(address: IpAddr, upstream: &Arc<Upstream>) -> anyhow::Result<()> {
    let place = SocketAddr::new(address, PORT);
    let cannot = || format!("cannot serve names on {place}");
    let datagrams = UdpSocket::bind(place).await.with_context(cannot)?;
    let connections = TcpListener::bind(place).await.with_context(cannot)?;
    tokio::spawn(udp::serve(Arc::new(datagrams), upstream.clone()));
    tokio::spawn(tcp::serve(connections, upstream.clone()));
    Ok(())
}

/// An answer, and the question as far as it was one.
struct Answer {
    bytes: Vec<u8>,
    query: Option<Query>,
}

/// Answers what an asker sent; none when it is nothing to be answered.
async fn answer(asked: &[u8], upstream: &Upstream) -> Option<Answer> {
    let query = match Query::parse(asked) {
        Ok(query) => query,
        Err(not) => {
            let bytes = message::refusal(asked, not.code?)?;
            return Some(Answer { bytes, query: None });
        }
    };
    let bytes = match upstream.ask(asked).await {
        Some(bytes) => bytes,
        None => query.answer(SERVER_FAILURE, &[]),
    };
    Some(Answer {
        bytes,
        query: Some(query),
    })
}

#[cfg(test)]
mod tests {
    use protocol::dns::Numbered;
    use protocol::dns::message::{A, NO_ERROR};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    use super::*;

    /// A question for the A records of `name`, with this id.
    pub(super) fn question(id: u16, name: &str) -> Vec<u8> {
        let mut bytes = id.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.extend_from_slice(&[0, 0, A as u8, 0, 1]);
        bytes
    }

    /// A host that answers every question with as many addresses as the number its name begins with says.
    pub(super) fn host(upstream: &Arc<Upstream>) -> JoinHandle<()> {
        let (mut host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(upstream::serve(guest, upstream.clone()));
        tokio::spawn(async move {
            while let Some(Numbered { number, message }) = Numbered::read(&mut host).await.unwrap() {
                let query = Query::parse(&message).unwrap();
                let count = query.name().split('.').next().unwrap().parse().unwrap();
                let records: Vec<&[u8]> = vec![&[192, 0, 2, 1]; count];
                let message = query.answer(NO_ERROR, &records);
                Numbered { number, message }.write(&mut host).await.unwrap();
            }
        })
    }

    #[tokio::test]
    async fn what_is_no_question_goes_no_further_than_here() {
        let upstream = Upstream::new();
        assert!(answer(b"", &upstream).await.is_none());
        let mut update = question(7, "1.example");
        update[2] |= 0x28;
        let refused = answer(&update, &upstream).await.unwrap().bytes;
        assert_eq!(refused[..4], [0, 7, 0xa9, 0x84]);
    }
}
