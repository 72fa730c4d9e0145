//! Names over TCP, for answers that are long and for askers that like it better (RFC 7766): messages with their length
//! before them, any number on a connection, each answered before the next is read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Upstream, answer};
use crate::console::warning;

/// Connections at once; more are closed as they come.
const CONNECTIONS: usize = 128;
/// How long an asker may take to send a question or to take an answer.
const IDLE: Duration = Duration::from_secs(10);

/// Serves for ever.
pub(super) async fn serve(listener: TcpListener, upstream: Arc<Upstream>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                warning!("cannot take connections for names: {e}");
                // Out of descriptors or memory, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(room) = room.clone().try_acquire_owned() else {
            continue;
        };
        let upstream = upstream.clone();
        tokio::spawn(async move {
            // An asker that does it wrong, or goes away, is nobody else's business.
            let _ = converse(stream, &upstream).await;
            drop(room);
        });
    }
}

async fn converse(mut stream: TcpStream, upstream: &Upstream) -> io::Result<()> {
    while let Ok(question) = timeout(IDLE, read(&mut stream)).await {
        let Some(question) = question? else { break };
        let Some(answer) = answer(&question, upstream).await else {
            break;
        };
        timeout(IDLE, write(&mut stream, &answer.bytes)).await??;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let mut question = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut question).await?;
    Ok(Some(question))
}

async fn write(stream: &mut TcpStream, answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(answer);
    stream.write_all(&message).await
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, question};
    use super::*;

    #[tokio::test]
    async fn a_connection_carries_several_questions_and_long_answers() {
        let upstream = Upstream::new();
        let _host = host(&upstream);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, upstream));
        let mut stream = TcpStream::connect(place).await.unwrap();
        for (id, name, addresses) in [(1, "2.example", 2_u16), (2, "4000.example", 4000)] {
            let question = question(id, name);
            let length = u16::try_from(question.len()).unwrap();
            stream.write_all(&length.to_be_bytes()).await.unwrap();
            stream.write_all(&question).await.unwrap();
            let answer = read(&mut stream).await.unwrap().unwrap();
            assert_eq!(answer[..2], id.to_be_bytes());
            assert_eq!(answer[6..8], addresses.to_be_bytes());
        }
        // What is no question ends it.
        stream.write_all(&[0, 1, 7]).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), None);
    }
}
