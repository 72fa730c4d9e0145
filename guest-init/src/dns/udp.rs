//! Names over UDP: a datagram for a question, a datagram for its answer. An answer that is longer than the asker takes
//! becomes one that says so, and is asked for over TCP then.

use std::sync::Arc;
use std::time::Duration;

use protocol::dns::MAX_MESSAGE;
use tokio::net::UdpSocket;

use super::{Answer, Upstream, answer};
use crate::console::warning;

/// Serves for ever.
pub(super) async fn serve(socket: Arc<UdpSocket>, upstream: Arc<Upstream>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, asker) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(e) => {
                warning!("cannot take questions for names: {e}");
                // Out of memory, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let question = buffer[..length].to_vec();
        let (socket, upstream) = (socket.clone(), upstream.clone());
        tokio::spawn(async move {
            if let Some(answer) = answer(&question, &upstream).await {
                // An asker that has gone away needs none.
                let _ = socket.send_to(&fitting(answer), asker).await;
            }
        });
    }
}

/// The answer as it goes into one datagram.
fn fitting(answer: Answer) -> Vec<u8> {
    match answer.query {
        Some(query) if answer.bytes.len() > query.udp_limit() => query.truncated(&answer.bytes),
        _ => answer.bytes,
    }
}

#[cfg(test)]
mod tests {
    use protocol::dns::message::is_truncated;

    use super::super::tests::{host, question};
    use super::*;

    #[tokio::test]
    async fn questions_are_answered_and_long_answers_cut() {
        let upstream = Upstream::new();
        let _host = host(&upstream);
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let place = socket.local_addr().unwrap();
        tokio::spawn(serve(socket, upstream));
        let asker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for (id, name, addresses, cut) in [(1, "2.example", 2, false), (2, "99.example", 0, true)] {
            asker.send_to(b"nonsense", place).await.unwrap();
            asker.send_to(&question(id, name), place).await.unwrap();
            let mut buffer = [0; 2000];
            let (length, from) = asker.recv_from(&mut buffer).await.unwrap();
            let answer = &buffer[..length];
            assert_eq!(from, place);
            assert!(length <= 512);
            assert_eq!(answer[..2], [0, id as u8]);
            assert_eq!(answer[6..8], [0, addresses]);
            assert_eq!(is_truncated(answer), cut);
        }
    }
}
